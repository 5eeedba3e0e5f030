"""How a transformers model computes a batch. Knows no training.

Internal: what users need of it is exported by `dmpo_trl`.
"""

__all__: list[str] = []
