"""Work over many users: shared among processes, and kept in parts from which an interrupted run goes on."""

from .parts import ResultParts, describe_scoring
from .processes import is_sharded, on_main_process, over_processes

__all__ = ["ResultParts", "describe_scoring", "is_sharded", "on_main_process", "over_processes"]
