"""The quickstart's data: films of MovieLens 100K, or of other RecBole files, with rejected films drawn at random."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import polars as pl
from _pretrained import MOVIELENS_100K
from datasets import Dataset

from dmpo_trl.data import (
    MOVIES,
    Interactions,
    leave_one_out,
    longest_histories,
    next_items,
    preference_dataset,
    ranking_dataset,
    read_recbole,
    sample_negatives,
    sft_dataset,
    split_users,
)
from dmpo_trl.evaluation import ItemKNN, RankingResult, rank_at_random, rank_by_item_knn, rank_by_popularity


@dataclass
class FilmSettings:
    """What is read, and who is trained and reported on."""

    data: str | None = field(default=None, metadata={"help": "Folder of RecBole files. Default: MovieLens 100K."})
    title_field: str = field(default="movie_title", metadata={"help": "Field of the .item file with the title."})
    year_field: str | None = field(
        default=None, metadata={"help": "Field of the .item file with the year, to be part of the title."}
    )
    report: str = field(
        default="test",
        metadata={"help": "Users to report on; settings are chosen on `tuning`.", "choices": ["test", "tuning"]},
    )
    train_users: int = 16
    validation_users: int = field(default=60, metadata={"help": "Users on whom the weight of the counts is chosen."})
    tuning_users: int = 200
    test_users: int = 200
    min_rating: float | None = field(
        default=4.0, metadata={"help": "Ratings from here on count as liked, where there are any."}
    )
    history_length: int = field(default=24, metadata={"help": "Most films in a prompt to learn from."})
    ranked_history: int = field(default=12, metadata={"help": "Most films to rank after; more take longer."})
    positions: int = field(default=20, metadata={"help": "Films per training user to learn from, the latest ones."})
    negatives: int = field(default=3, metadata={"help": "Rejected films for each chosen one in training."})
    candidates: int = field(default=20, metadata={"help": "Films to rank: one the user liked, the rest never had."})
    seed: int = 0


@dataclass
class Films:
    """The data of one run: who is trained, on what, and who is ranked."""

    data: Interactions
    settings: FilmSettings

    @cached_property
    def users(self) -> dict[str, pl.DataFrame]:
        """The last film that each user liked and what came before, by group of users."""
        own = self.settings
        sizes = {"train": own.train_users, "validation": own.validation_users}
        sizes |= {"tuning": own.tuning_users, "test": own.test_users}
        last = leave_one_out(self.data, min_rating=own.min_rating, history_length=own.ranked_history, min_history=2)
        return split_users(last, sizes, seed=own.seed)

    @cached_property
    def examples(self) -> pl.DataFrame:
        """Each film that a training user liked, after those before it: histories that grow by a film."""
        grown = next_items(
            self.data,
            min_rating=self.settings.min_rating,
            history_length=self.settings.history_length,
            min_history=2,
            per_user=self.settings.positions,
            growing=True,
        )
        return grown.join(self.users["train"], on="user", how="semi", maintain_order="left")

    def sft(self) -> Dataset:
        """Return the longest history of each user with the film after it; SFT learns every film of it."""
        return sft_dataset(longest_histories(self.examples), self.data, MOVIES)

    def preference(self) -> Dataset:
        """Return all examples, each with films that the user never had."""
        drawn = sample_negatives(self.examples, self.data, self.settings.negatives, seed=self.settings.seed)
        return preference_dataset(drawn, self.data, MOVIES)

    def ranking(self, group: str) -> Dataset:
        """Return the candidates of a group of users; another seed than in training, so that they share no draws."""
        drawn = sample_negatives(
            self.users[group], self.data, self.settings.candidates - 1, seed=self.settings.seed + 1
        )
        return ranking_dataset(drawn, self.data, MOVIES, seed=self.settings.seed)

    def shown(self) -> pl.DataFrame:
        """Return what the model sees of the training users: `user` and `item`."""
        return self.examples.select("user", item=pl.concat_list("history", "target")).explode("item").unique()

    def all_interactions(self) -> pl.DataFrame:
        """Return all that is known of the training users: `user` and `item`."""
        had = self.data.interactions.select("user", "item").cast(pl.String)
        return had.join(self.users["train"], on="user", how="semi")


def read_films(settings: FilmSettings) -> Films:
    """Read the folder given, or MovieLens 100K."""
    folder = Path(settings.data) if settings.data else MOVIELENS_100K.fetch()[0].parent
    data = read_recbole(folder, title_field=settings.title_field, year_field=settings.year_field)
    if "rating" not in data.interactions.columns:  # then all that somebody had counts as liked
        settings = replace(settings, min_rating=None)
    return Films(data, settings)


def rank_by_counts(films: Films, users: Dataset) -> dict[str, RankingResult]:
    """Rank by what the model saw of the training users, and by all that is known of them."""
    results = {"random": rank_at_random(users)}
    for suffix, counted in (("", films.shown()), (", all", films.all_interactions())):
        counts = dict(counted.group_by("item").len().iter_rows())
        results[f"popularity{suffix}"] = rank_by_popularity(users, counts)
        results[f"item_knn{suffix}"] = rank_by_item_knn(users, ItemKNN(counted))
    return results
