"""Recommend from a catalogue with a language model: rank, recommend, explain."""

from .catalogue import Catalogue, TitleTrie
from .explain import Explanation
from .recommender import Recommendation, Recommender
from .streaming import UserHistory

__all__ = ["Catalogue", "Explanation", "Recommendation", "Recommender", "TitleTrie", "UserHistory"]
