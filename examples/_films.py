"""The quickstart's data: films of MovieLens 100K, or of other RecBole files, with rejected films drawn at random."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from _pretrained import MOVIELENS_100K
from datasets import Dataset

from dmpo_trl.data import (
    MOVIES,
    Interactions,
    leave_one_out,
    preference_dataset,
    ranking_dataset,
    read_recbole,
    sample_negatives,
    split_users,
)


@dataclass
class FilmSettings:
    """What is read, and who is trained and reported on."""

    data: str | None = field(default=None, metadata={"help": "Folder of RecBole files. Default: MovieLens 100K."})
    title_field: str = field(default="movie_title", metadata={"help": "Field of the .item file with the title."})
    year_field: str | None = field(
        default=None, metadata={"help": "Field of the .item file with the year, to be part of the title."}
    )
    report: str = field(default="test", metadata={"help": "Users to report on.", "choices": ["test", "validation"]})
    train_users: int = 400
    validation_users: int = 340
    test_users: int = 120
    min_rating: float | None = field(default=4.0, metadata={"help": "Ratings from here on count as liked."})
    history_length: int = field(default=10, metadata={"help": "Films in a prompt."})
    negatives: int = field(default=7, metadata={"help": "Rejected films for each chosen one in training."})
    candidates: int = field(default=20, metadata={"help": "Films to rank: one the user liked, the rest never had."})
    seed: int = 0


def read_data(settings: FilmSettings) -> Interactions:
    """Read the folder given, or MovieLens 100K."""
    folder = Path(settings.data) if settings.data else MOVIELENS_100K.fetch()[0].parent
    return read_recbole(folder, title_field=settings.title_field, year_field=settings.year_field)


def make_datasets(data: Interactions, settings: FilmSettings) -> tuple[Dataset, Dataset, Dataset, dict[str, int]]:
    """Return examples for SFT and for DMPO, rankings to report on, and how often the training users had each film.

    SFT and DMPO share their users, not their targets: DMPO learns from the last film that a user liked, SFT from what
    came before. A target that SFT has seen already is an easy one that teaches DMPO little.
    """
    options = {"min_rating": settings.min_rating, "history_length": settings.history_length}
    sizes = {"train": settings.train_users, "validation": settings.validation_users, "test": settings.test_users}
    last = leave_one_out(data, **options, min_history=2)
    users = split_users(last, sizes, seed=settings.seed)
    had = data.interactions.cast({"user": pl.String, "item": pl.String})
    before = had.join(last, left_on=["user", "item"], right_on=["user", "target"], how="anti")
    earlier = leave_one_out(Interactions(before, data.items), **options)
    earlier = earlier.join(users["train"], on="user", how="semi", maintain_order="left")

    sft = preference_dataset(earlier.with_columns(negatives=[]), data, MOVIES)
    sft = sft.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    dmpo = preference_dataset(
        sample_negatives(users["train"], data, settings.negatives, seed=settings.seed), data, MOVIES
    )
    # Another seed than in training: the two must not share their draws
    report = sample_negatives(users[settings.report], data, settings.candidates - 1, seed=settings.seed + 1)
    popularity = dict(had.join(users["train"], on="user", how="semi").group_by("item").len().iter_rows())
    return sft, dmpo, ranking_dataset(report, data, MOVIES, seed=settings.seed), popularity
