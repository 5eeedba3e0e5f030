"""Recommending in each of two processes, which write what they did to a JSON file; test_processes.py compares."""

import json
import os
import sys
from pathlib import Path

import polars as pl
from accelerate import PartialState
from support import make_model, make_tokenizer
from support.users import TITLES

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Candidates, Recommender
from dmpo_trl.training.distributed import end_process_group
from dmpo_trl.work import parts

ITEMS = pl.DataFrame({"item": [str(number) for number in range(len(TITLES))], "title": TITLES})
USERS = [(f"u{number}", [str(number), str(number + 2)]) for number in range(7)]
WAYS = {
    "beams": {"num_beams": 3},
    "candidates": {"candidates": Candidates("any", lambda *_: ITEMS["item"].to_list()[2:7], 4)},
}


class Watched(Recommender):
    """Counts its users, and fails at one if asked to."""

    def __init__(self, fail_at=None):
        super().__init__(make_model(), make_tokenizer(), ITEMS, MOVIES.plain())
        self.fail_at, self.users = fail_at, []

    def recommend_batch(self, histories, *args, users, **options):
        if self.fail_at in users:
            raise KeyboardInterrupt
        self.users += users
        return super().recommend_batch(histories, *args, users=users, **options)


def recommend(path, options, fail_at=None):
    recommender = Watched(fail_at)
    try:
        recommender.recommend_all(USERS, path, k=3, batch_size=2, **options)
    except KeyboardInterrupt:
        assert fail_at is not None
    return recommender.users


def find(folder):
    """The users of this process: of a whole run, of one that ends in its second part, and of the next one."""
    number = PartialState().process_index
    found = {}
    for way, options in WAYS.items():
        # The two users of the second part whom the processes begin with
        ends = recommend(folder / f"{way}-again.parquet", options, fail_at=USERS[4 + number][0])
        found[way] = {
            "whole": recommend(folder / f"{way}.parquet", options),
            "interrupted": ends,
            "again": recommend(folder / f"{way}-again.parquet", options),
        }
    return found


def main(folder):
    parts.USERS_PER_PART = 2  # for each process: two parts of the seven users
    state = PartialState(cpu=True)
    found = find(Path(folder))
    Path(folder, f"{state.process_index}.json").write_text(json.dumps(found))
    end_process_group()
    os._exit(0)  # see two_processes_rank.py


if __name__ == "__main__":
    main(sys.argv[1])
