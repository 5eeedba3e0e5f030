from types import SimpleNamespace

import polars as pl
import pytest
from support import make_model, make_tokenizer

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Recommender

TITLES = [
    "Alien", "Aliens", "Alien 3", "The Mask", "The Matrix", "The Mask", "Star Wars", "Star Trek", "Toy Story",
    "Toy Story 2", "Heidi", "Babe", "The Rock", "Amélie",
]  # fmt: skip


@pytest.fixture(scope="package")
def items():
    """Titles that begin alike, that are prefixes of others, and one that two items share (3 and 5)."""
    return pl.DataFrame({"item": [str(100 + row) for row in range(len(TITLES))], "title": TITLES})


@pytest.fixture(scope="package", params=["chat", "plain"])
def case(request, items):
    """A recommender of each style, with the model and tokenizer that it holds."""
    template = MOVIES if request.param == "chat" else MOVIES.plain()
    model, tokenizer = make_model("llama"), make_tokenizer()
    recommender = Recommender(model, tokenizer, items, template)
    return SimpleNamespace(recommender=recommender, model=model, tokenizer=tokenizer, template=template)
