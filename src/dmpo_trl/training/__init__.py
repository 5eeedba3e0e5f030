"""What surrounds a training step: functions that the trainer calls."""
