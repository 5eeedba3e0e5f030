"""Recommend from a catalogue with a language model: rank, recommend, explain."""

from .candidates import Candidates
from .catalogue import Catalogue, TitleTrie
from .decoding.beam_search import NonFiniteScoresError
from .explanation import Explanation
from .logits_processor import TitleTrieLogitsProcessor
from .no_history import prior_without_history
from .prior import Prior
from .recommendation import Recommendation, UserHistory
from .recommender import Recommender
from .title_arrays import TitleArrays
from .title_generation import TitleGeneration, TitleInputs

__all__ = [
    "Candidates",
    "Catalogue",
    "Explanation",
    "NonFiniteScoresError",
    "Prior",
    "Recommendation",
    "Recommender",
    "TitleArrays",
    "TitleGeneration",
    "TitleInputs",
    "TitleTrie",
    "TitleTrieLogitsProcessor",
    "UserHistory",
    "prior_without_history",
]
