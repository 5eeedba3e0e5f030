"""From raw files to a prepared folder, in one call."""
