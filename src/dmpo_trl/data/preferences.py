"""From examples of items to datasets of text."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
from datasets import Dataset

from .interactions import Interactions
from .prompts import PromptTemplate


def preference_dataset(examples: pl.DataFrame, data: Interactions, template: PromptTemplate) -> Dataset:
    """The training data of `DMPOTrainer`: one row an example.

    Args:
        examples: columns `history`, `target` and `negatives`, as [`leave_one_out`] and [`sample_negatives`] make them.
        data: the interactions; they give the titles.
        template: makes prompts and completions.

    Returns:
        Columns `prompt`, `chosen` (the target) and `rejected` (a list, the negatives).
    """
    title = data.titles()
    rows = [
        {
            "prompt": template.prompt([title[item] for item in history]),
            "chosen": template.completion(title[target]),
            "rejected": [template.completion(title[item]) for item in negatives],
        }
        for history, target, negatives in examples.select("history", "target", "negatives").iter_rows()
    ]
    return Dataset.from_list(rows)


def ranking_dataset(examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int) -> Dataset:
    """The questions of a candidate ranking: the target among the negatives, one row an example.

    The target's place is drawn from `seed` and the user, never from the target.

    Args:
        examples: columns `user`, `history`, `target` and `negatives`.
        data: the interactions; they give the titles.
        template: makes prompts and completions.
        seed: of the target's place.

    Returns:
        Columns `user`, `history` and `items` (item identifiers of the history and of the candidates), `positive`
        (index of the target among the candidates), `prompt` and `candidates` (a list of completions).
    """
    title = data.titles()
    rows = []
    for user, history, target, negatives in examples.select("user", "history", "target", "negatives").iter_rows():
        place = int(np.random.default_rng([seed, zlib.crc32(user.encode())]).integers(len(negatives) + 1))
        items = [*negatives[:place], target, *negatives[place:]]
        rows.append(
            {
                "user": user,
                "history": history,
                "items": items,
                "positive": place,
                "prompt": template.prompt([title[item] for item in history]),
                "candidates": [template.completion(title[item]) for item in items],
            }
        )
    return Dataset.from_list(rows)
