"""What a run over many users is known by."""

import json

import numpy as np
from support import make_model, make_tokenizer

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Candidates, Prior, Recommender
from dmpo_trl.recommend._run import describe_run


def test_numbers_of_numpy_are_those_of_python(items, tmp_path):
    prior = Prior.popularity({"100": 3})
    recommender = Recommender(
        make_model(), make_tokenizer(), items, MOVIES.plain(), prior=prior, prior_weight=np.float32(2)
    )
    described = [
        json.dumps(describe_run(recommender, k=k, candidates=Candidates.best_by(prior, per_user=k).describe()))
        for k in (2, np.int64(2))
    ]
    assert described[0] == described[1]
    users = [("u", ["Alien"])]
    assert recommender.recommend_all(users, tmp_path / "all.parquet", np.int64(2), num_beams=np.int32(3)) == 1
