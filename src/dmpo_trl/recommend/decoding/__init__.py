"""Beam search over the titles of a catalogue."""
