"""Beam search over the titles of a catalogue.

Internal: `Recommender.recommend` is its public face.
"""

__all__: list[str] = []
