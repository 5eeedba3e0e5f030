"""Readers of raw recommender files: each returns `Interactions`."""
