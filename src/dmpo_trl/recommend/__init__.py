"""Recommend from a catalogue with a language model: rank, recommend, explain."""

from .catalogue import Catalogue, TitleTrie
from .explanation import Explanation
from .recommendation import Recommendation, UserHistory
from .recommender import Recommender

__all__ = ["Catalogue", "Explanation", "Recommendation", "Recommender", "TitleTrie", "UserHistory"]
