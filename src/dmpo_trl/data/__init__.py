"""From raw recommender files to preference datasets: readers, splits, negatives, prompts."""

from .datasets import pair_dataset, preference_dataset, ranking_dataset, sft_dataset
from .examples import leave_one_out, longest_histories, next_items
from .filters import k_core
from .interactions import Interactions
from .item_splits import hold_out_items, only_items, split_items
from .leakage import LeakReport, leak_report, leak_report_of_files
from .negatives import hard_negatives, sample_negatives
from .preparation import PrepareConfig, Prepared, prepare
from .prompts import GAMES, GENERAL, MOVIES, MUSIC, PRODUCTS, TEMPLATES, PromptTemplate
from .published import PublishedSplits, read_dmpo, read_llara, read_minionerec, read_msl, read_sdpo
from .readers import (
    DownloadError,
    RemoteFile,
    cache_dir,
    natural_title,
    read_amazon,
    read_lastfm,
    read_movielens,
    read_recbole,
    read_table,
    room_on_disk,
)
from .splits import few_shot, split_by_time, split_leave_one_out, split_users
from .tidy import tidy_title

__all__ = [
    "GAMES",
    "GENERAL",
    "MOVIES",
    "MUSIC",
    "PRODUCTS",
    "TEMPLATES",
    "DownloadError",
    "Interactions",
    "LeakReport",
    "PrepareConfig",
    "Prepared",
    "PromptTemplate",
    "PublishedSplits",
    "RemoteFile",
    "cache_dir",
    "few_shot",
    "hard_negatives",
    "hold_out_items",
    "k_core",
    "leak_report",
    "leak_report_of_files",
    "leave_one_out",
    "longest_histories",
    "natural_title",
    "next_items",
    "only_items",
    "pair_dataset",
    "preference_dataset",
    "prepare",
    "ranking_dataset",
    "read_amazon",
    "read_dmpo",
    "read_lastfm",
    "read_llara",
    "read_minionerec",
    "read_movielens",
    "read_msl",
    "read_recbole",
    "read_sdpo",
    "read_table",
    "room_on_disk",
    "sample_negatives",
    "sft_dataset",
    "split_by_time",
    "split_items",
    "split_leave_one_out",
    "split_users",
    "tidy_title",
]
