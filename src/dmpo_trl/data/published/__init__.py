"""Splits that papers published: each reader returns `PublishedSplits`."""

from ._splits import PublishedSplits
from .dmpo import read_dmpo
from .llara import read_llara
from .minionerec import read_minionerec
from .msl import read_msl
from .sdpo import read_sdpo

__all__ = ["PublishedSplits", "read_dmpo", "read_llara", "read_minionerec", "read_msl", "read_sdpo"]
