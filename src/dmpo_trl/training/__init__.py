"""What surrounds a training step: functions that the trainer calls.

Internal: what users need of it is exported by `dmpo_trl`.
"""

__all__: list[str] = []
