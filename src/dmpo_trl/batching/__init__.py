"""From token ids to the tensors of a batch. Knows no model.

Internal: what users need of it is exported by `dmpo_trl`.
"""

__all__: list[str] = []
