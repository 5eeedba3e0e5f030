"""From a row as users write it to token ids, checked once. Knows no tensors.

Internal: what users need of it is exported by `dmpo_trl`.
"""

__all__: list[str] = []
