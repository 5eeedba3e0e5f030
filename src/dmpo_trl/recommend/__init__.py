"""Recommend from a catalogue with a language model: rank, recommend, explain."""

from .batch import UserHistory
from .catalogue import Catalogue, TitleTrie
from .explanation import Explanation
from .recommender import Recommendation, Recommender

__all__ = ["Catalogue", "Explanation", "Recommendation", "Recommender", "TitleTrie", "UserHistory"]
