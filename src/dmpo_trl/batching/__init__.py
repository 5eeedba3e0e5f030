"""From token ids to the tensors of a batch. Knows no model."""
