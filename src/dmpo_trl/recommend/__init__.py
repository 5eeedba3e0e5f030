"""Recommend from a catalogue with a language model: rank, recommend, explain."""

from .candidates import Candidates
from .catalogue import Catalogue, TitleTrie
from .explanation import Explanation
from .prior import Prior
from .recommendation import Recommendation, UserHistory
from .recommender import Recommender

__all__ = [
    "Candidates",
    "Catalogue",
    "Explanation",
    "Prior",
    "Recommendation",
    "Recommender",
    "TitleTrie",
    "UserHistory",
]
