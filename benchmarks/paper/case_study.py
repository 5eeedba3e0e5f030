"""Case study: what a model does for a few test users, before and after its last stage, and why, as Markdown.

It names titles of a data set's users, so it is for reading and not for committing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from dmpo_trl.evaluation import score_candidates
from dmpo_trl.recommend import Recommender

from .cells import Places, train, users_of
from .methods import COUNTS, SFT, TRADITIONAL, ZERO_SHOT
from .settings import Cell
from .training import load
from .users import Users

BEST = 5
WORDS = 60
"""Length of the model's own words, in tokens."""


def write_case_study(cell: Cell, places: Places, users: int, file: Path) -> None:
    """Write the history, ranking and explanations of the first test users of a cell.

    Args:
        cell: Of a language model that was trained. Before its stage was SFT, and before SFT the model as it came.
        places: Where adapters are, and raw files.
        users: How many users.
        file: The Markdown.

    Raises:
        SystemExit: The cell has no model that is trained, or ranks pairs, or not so many users.
    """
    name = cell.file_name.removesuffix(".json")
    ranked = users_of(cell, cell.dataset, places)
    if cell.method in (COUNTS, ZERO_SHOT, *TRADITIONAL) or not isinstance(ranked, Users):
        raise SystemExit(f"{name}: a case study is of a language model that was trained, and of users.")
    if not 0 < users <= cell.settings.test_users:
        raise SystemExit(f"--users {users}: {name} ranks {cell.settings.test_users} test users.")
    train(cell, users_of(cell, cell.trained_on, places), places)
    before = None if cell.method == SFT else cell.adapter(places.work, SFT)
    tokenizer = AutoTokenizer.from_pretrained(places.model)
    rows = ranked.ranking("test").select(range(users))
    model = load(places.model, cell.settings, before)
    earlier = [one.by("sum") for one in score_candidates(model, tokenizer, rows)]
    model = load(places.model, cell.settings, cell.adapter(places.work)).eval()
    later = [one.by("sum") for one in score_candidates(model, tokenizer, rows)]
    recommender = Recommender(model, tokenizer, ranked.data.items, ranked.source.template)
    start = SFT if before else "the model as it came"
    lines = [
        f"# {name}: {users} users",
        "",
        f"Ranked by {start} (before) and by {cell.method} (after). A star marks what the user had next.",
        "",
    ]
    for row, first, second in zip(rows, earlier, later, strict=True):
        lines += _case(row, first, second, recommender)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file}: {users} users.")


def _case(row: dict[str, Any], before: np.ndarray, after: np.ndarray, recommender: Recommender) -> Iterator[str]:
    titles = dict(zip(recommender.catalogue.items, recommender.catalogue.titles, strict=True))
    names = [titles[item] + (" *" if place == row["positive"] else "") for place, item in enumerate(row["items"])]
    orders = [np.argsort(-scores, kind="stable").tolist() for scores in (before, after)]
    yield f"## User {row['user']}"
    yield ""
    yield "History: " + "; ".join(titles[item] for item in row["history"])
    yield ""
    yield "| | before | after |"
    yield "|---|---|---|"
    for place, pair in enumerate(zip(*orders, strict=True), start=1):
        if place <= BEST:
            yield f"| {place} | {names[pair[0]]} | {names[pair[1]]} |"
    places = [order.index(row["positive"]) + 1 for order in orders]
    yield f"| place of the target among {len(names)} | {places[0]} | {places[1]} |"
    yield ""
    yield "```text"
    yield str(recommender.explain(row["history"], row["items"][orders[1][0]], max_new_tokens=WORDS))
    yield "```"
    yield ""
