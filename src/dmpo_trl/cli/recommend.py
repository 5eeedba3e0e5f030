"""`dmpo-trl recommend`: items of the whole catalogue, for one history or for many users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .options import ModelArguments, parse


@dataclass
class RecommendArguments:
    """Whom to recommend to, and what."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`Recommender.save_pretrained` left beside the model."
        },
    )
    history: list[str] | None = field(
        default=None, metadata={"help": "One user's items from old to new, by identifier or exact title."}
    )
    users: str | None = field(
        default=None, metadata={"help": 'File of users, a JSON object a line: {"user": "7", "history": ["1", "50"]}.'}
    )
    output: str | None = field(
        default=None, metadata={"help": "Parquet file for --users: user, rank, item, title, score."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace --output where it exists."})
    k: int = field(default=10, metadata={"help": "Number of items a user."})
    num_beams: int = field(default=20, metadata={"help": "Beginnings of titles followed at a time."})
    batch_size: int = field(default=8, metadata={"help": "Users searched together."})


def run(arguments: list[str]) -> None:
    """Recommends as the arguments say; prints, or writes to a file."""
    model, options = parse("recommend", arguments, ModelArguments, RecommendArguments)
    if (options.history is None) == (options.users is None):
        raise ValueError("give either --history, for one user, or --users, a file of them")
    if options.users is not None:
        if options.output is None:
            raise ValueError("--users needs --output, the Parquet file to write")
        if Path(options.output).exists() and not options.overwrite:
            raise ValueError(f"{options.output} exists already; choose another file, or set --overwrite")

    from ..recommend import Recommender

    recommender = Recommender.from_pretrained(model.model, data=options.data, **model.from_pretrained())
    if options.history is not None:
        found = recommender.recommend(options.history, options.k, num_beams=options.num_beams)
        for rank, one in enumerate(found, start=1):
            print(f"{rank:>3}. {one.title}  ({one.item}, log-prob {one.score:.2f})")
        return
    count = recommender.recommend_all(
        _read_users(options.users),
        options.output,
        options.k,
        num_beams=options.num_beams,
        batch_size=options.batch_size,
    )
    print(f"Recommendations for {count:,} users are in {options.output}.")


def _read_users(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                user, history = str(row["user"]), row["history"]
                if not isinstance(history, list):
                    raise TypeError("history must be a list")
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"user": ..., "history": [items]}} ({error})'
                ) from error
            yield user, [str(item) for item in history]
