"""Readers of raw recommender files: each returns `Interactions`."""

from ._download import DownloadError, RemoteFile, cache_dir, room_on_disk
from ._titles import natural_title
from .amazon import read_amazon
from .lastfm import read_lastfm
from .movielens import read_movielens
from .recbole import read_recbole
from .table import read_table

__all__ = [
    "DownloadError",
    "RemoteFile",
    "cache_dir",
    "natural_title",
    "read_amazon",
    "read_lastfm",
    "read_movielens",
    "read_recbole",
    "read_table",
    "room_on_disk",
]
