"""Options that several subcommands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Prepared


def parse(command: str, arguments: list[str], *types: Any) -> Any:
    """An instance of each type, from flags and from the YAML file of `--config`."""
    from trl import TrlParser

    return TrlParser(types, prog=f"dmpo-trl {command}").parse_args_and_config(arguments)


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = field(metadata={"help": "Folder or hub id of a model or of an adapter."})
    dtype: str | None = field(default=None, metadata={"help": "For instance bfloat16. Default: float32 on a CPU."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def from_pretrained(self) -> dict[str, Any]:
        """What `from_pretrained` gets."""
        options: dict[str, Any] = {} if self.dtype is None else {"dtype": self.dtype}
        return options | ({"trust_remote_code": True} if self.trust_remote_code else {})


def ranking_users(prepared: Prepared, split: str, limit: int | None) -> Dataset:
    """The users of a split of a prepared folder, all or the first ones."""
    users = prepared.ranking[split]
    return users if limit is None else users.select(range(min(limit, len(users))))
