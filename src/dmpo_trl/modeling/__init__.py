"""Modeling: how a transformers model computes a batch. Knows nothing of training."""
