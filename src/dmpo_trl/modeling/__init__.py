"""Modeling: how a transformers model computes a batch. Knows nothing of training.

Internal: what users need of it is exported by `dmpo_trl`.
"""

__all__: list[str] = []
