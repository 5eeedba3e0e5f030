"""The data sets: how the raw files are read, what counts as liked, and how a model is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import polars as pl
from models import movielens_folder

from dmpo_trl.data import (
    MOVIES,
    MUSIC,
    PRODUCTS,
    Interactions,
    PromptTemplate,
    PublishedSplits,
    read_amazon,
    read_lastfm,
    read_msl,
    read_recbole,
)

from .pairs import FOLDER, PAIR_SOURCES, PairSource


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        read: Reads the folder with the raw files.
        files: What the folder holds, and who publishes it; for the message where it is not given.
        template: Makes the prompts.
        min_rating: Ratings from here on count as liked; None: all interactions do.
        reworded: The data set that this one is, with other prompts; None: it is its own.
    """

    read: Callable[[Path], Interactions]
    files: str
    template: PromptTemplate
    min_rating: float | None = None
    reworded: str | None = None

    def plain(self) -> Self:
        """Return the source with prompts of plain text."""
        return replace(self, template=self.template.plain())


def _read_office(folder: Path) -> Interactions:
    """Read the training windows of MSL's Office, each user's latest, as that user's interactions."""
    published = read_msl(folder)
    latest = published.examples["train"].unique("user", keep="last", maintain_order=True)
    windows = latest.select("user", item=pl.concat_list("history", "target"))
    rows = windows.with_columns(timestamp=pl.int_ranges(pl.col("item").list.len())).explode("item", "timestamp")
    return Interactions(rows, published.interactions.items, order="position")


_MOVIELENS = Source(
    lambda folder: read_recbole(folder, title_field="movie_title"),
    "MovieLens 100K as RecBole's atomic files (by default those of the recbole wheel)",
    MOVIES,
    min_rating=4.0,
)
_QUESTION_LAST = replace(MOVIES, instruction="A viewer liked these films:", question="Which film will they like next?")

SOURCES: dict[str, Source | PairSource] = {
    "movielens": _MOVIELENS,
    "movielens-question-last": replace(_MOVIELENS, template=_QUESTION_LAST, reworded="movielens"),
    "office": Source(_read_office, "the Office files of MSL (arXiv 2504.04178): train.csv, id2name.json", PRODUCTS),
    "gift-cards": Source(
        lambda folder: read_amazon(folder, category="Gift_Cards"),
        "Amazon Review Data 2018: Gift_Cards_5.json.gz and meta_Gift_Cards.json.gz",
        PRODUCTS,
        min_rating=4.0,
    ),
    "lastfm": Source(read_lastfm, "HetRec 2011's Last.fm 2K: user_artists.dat, artists.dat", MUSIC),
    **PAIR_SOURCES,
}


def read_source(name: str, folders: dict[str, Path]) -> Interactions | PublishedSplits:
    """Read a data set from its folder.

    Raises:
        SystemExit: The folder is not among `folders`.
    """
    source = SOURCES[name]
    called = FOLDER if isinstance(source, PairSource) else source.reworded or name
    folder = folders.get(called) or (movielens_folder() if called == "movielens" else None)
    if folder is None:
        raise SystemExit(f"Give the folder of {name} with --data {called}=FOLDER: {source.files}.")
    return source.read(folder)
