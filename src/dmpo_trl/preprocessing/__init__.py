"""From a row as users write it to token ids, checked once. Knows no tensors."""
