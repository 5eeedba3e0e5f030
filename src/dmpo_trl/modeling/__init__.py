"""How a transformers model computes a batch. Knows no training."""
