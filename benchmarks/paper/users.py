"""The users of a cell: who is trained on what, and who is ranked."""

from dataclasses import dataclass
from functools import cached_property

import polars as pl
from datasets import Dataset

from dmpo_trl.data import (
    Interactions,
    few_shot,
    hard_negatives,
    leave_one_out,
    longest_histories,
    next_items,
    preference_dataset,
    ranking_dataset,
    sample_negatives,
    sft_dataset,
    split_users,
)
from dmpo_trl.evaluation import full_catalogue

from .methods import Method, Scorer
from .settings import Settings
from .sources import Source

NAMES = {"uniform": "test", "popularity": "popular"}
"""What a protocol is called in a cell's file; the whole catalogue is `catalogue`."""

_POOL = 20  # of which the hardest are taken


@dataclass
class Users:
    """Training users of one seed, and the users who are ranked, who stay the same."""

    source: Source
    data: Interactions
    settings: Settings
    count: int
    seed: int

    whole_rows = True
    """SFT learns the titles of a history too."""

    @cached_property
    def groups(self) -> dict[str, pl.DataFrame]:
        """The last target of every user who may be ranked or trained on, by group."""
        own = self.settings
        last = leave_one_out(
            self.data, min_rating=self.source.min_rating, history_length=own.history_length, min_history=2
        )
        ranked = split_users(last, {"test": own.test_users, "validation": own.validation_users}, seed=0)
        others = last.join(pl.concat(list(ranked.values())), on="user", how="anti", maintain_order="left")
        return ranked | {"train": few_shot(others, self.count, seed=self.seed), "others": others}

    @cached_property
    def examples(self) -> pl.DataFrame:
        """Growing histories of the training users."""
        examples = next_items(
            self.data,
            min_rating=self.source.min_rating,
            history_length=self.settings.history_length,
            min_history=self.settings.min_history,
            per_user=self.settings.positions,
            growing=True,
        )
        return examples.join(self.groups["train"], on="user", how="semi", maintain_order="left")

    @cached_property
    def shown(self) -> pl.DataFrame:
        """The interactions that the model sees, each once: `user`, `item`, by time."""
        windows = self.examples.select("user", item=pl.concat_list("history", "target"))
        return windows.explode("item").unique(maintain_order=True)

    def all_of(self, group: str) -> pl.DataFrame:
        """All interactions of the users of a group: `user`, `item`, by time."""
        had = self.data.interactions.sort("timestamp", maintain_order=True).select("user", "item").cast(pl.String)
        return had.join(self.groups[group].cast({"user": pl.String}), on="user", how="semi", maintain_order="left")

    def counted(self) -> dict[str, pl.DataFrame]:
        """Return what popularity and ItemKNN count, by what is added to their names."""
        return {"": self.shown, ", all interactions": self.all_of("train")}

    def sft(self) -> Dataset:
        """Return the longest history of each user, with what came next."""
        return sft_dataset(longest_histories(self.examples), self.data, self.source.template)

    def preference(self, method: Method, scorer: Scorer) -> Dataset:
        """Return the examples with negatives, as the method wants them.

        Args:
            method: Says which positions, how many negatives and how they are drawn.
            scorer: Scores candidates by the model where the hardest are wanted.
        """
        examples = self.examples
        if method.positions == "last":
            examples = examples.unique("user", keep="last", maintain_order=True)
        if method.drawn == "model":
            drawn = hard_negatives(
                examples,
                self.data,
                method.negatives,
                seed=self.seed,
                pool=max(_POOL, method.negatives),
                score=lambda rows: self._scores(rows, scorer),
            )
        else:
            drawn = sample_negatives(examples, self.data, method.negatives, seed=self.seed, strategy=method.drawn)
        return preference_dataset(drawn, self.data, self.source.template)

    def ranking(self, group: str, protocol: str = "uniform") -> Dataset:
        """Return the users of a group with their candidates, in the order drawn."""
        drawn = sample_negatives(
            self.groups[group], self.data, self.settings.candidates - 1, seed=1000, strategy=protocol
        )
        return ranking_dataset(drawn, self.data, self.source.template, seed=1000)

    def questions(self) -> dict[str, Dataset]:
        """Return the test users with their candidates, by the protocol's name in the cell's file."""
        found = {NAMES[protocol]: self.ranking("test", protocol) for protocol in self.settings.protocols}
        if self.settings.catalogue_users:
            found["catalogue"] = self.catalogue()
        return found

    def _scores(self, rows: pl.DataFrame, scorer: Scorer) -> list[list[float]]:
        """Score the items of the column `candidates`, (rows, candidates)."""
        own = pl.col("candidates").list
        as_questions = rows.with_columns(target=own.first(), negatives=own.slice(1)).drop("candidates")
        questions = ranking_dataset(as_questions, self.data, self.source.template, seed=0)
        scored = [
            dict(zip(items, scores, strict=True))
            for items, scores in zip(questions["items"], scorer(questions), strict=True)
        ]
        wanted = zip(scored, rows["candidates"].to_list(), strict=True)
        return [[scores[item] for item in candidates] for scores, candidates in wanted]

    def catalogue(self) -> Dataset:
        """Return the first test users, with the whole catalogue as candidates."""
        users = self.ranking("test").select(range(self.settings.catalogue_users))
        return full_catalogue(users, self.data.titles(), self.source.template)
