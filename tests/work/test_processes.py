"""Two CPU processes find what one finds, every user once and in order, and share the work."""

import json

import numpy as np
import pytest
from support import make_model, make_tokenizer
from support.launch import two_processes
from support.users import TITLES, make_users

from dmpo_trl.evaluation.generation import generate_items
from dmpo_trl.evaluation.ranking import rank_with_model


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("two_processes")
    two_processes("two_processes_rank.py", folder)
    return [json.loads((folder / f"{process}.json").read_text()) for process in (0, 1)]


@pytest.mark.parametrize(
    ("case", "count"),
    [("plain", 7), ("ddp", 7), ("fsdp", 7), ("fewer users than processes", 1), ("in parts", 7), ("from parts", 7)],
)
def test_every_user_is_ranked_once_in_order(found, case, count):
    alone = rank_with_model(make_model(), make_tokenizer(), make_users(count), score="sum", name="one")
    for process in found:
        assert process[case]["users"] == alone.users
        for scores, expected in zip(process[case]["scores"], alone.scores, strict=True):
            assert scores == pytest.approx(expected, abs=1e-4)


def test_processes_share_the_users_unless_the_model_is_sharded(found):
    first, second = (process["plain"]["forwards"] for process in found)
    everything = found[0]["fsdp"]["forwards"]
    assert found[1]["fsdp"]["forwards"] == everything
    assert max(first, second) < everything
    assert min(first, second) > 0
    assert [process["fewer users than processes"]["forwards"] for process in found] == [1, 0]


def test_processes_share_each_part_and_take_it_from_the_main_process(found):
    assert min(process["in parts"]["forwards"] for process in found) > 0
    assert [process["from parts"]["forwards"] for process in found] == [0, 0]


def test_generated_items_stand_in_the_users_order(found):
    alone = generate_items(make_model(), make_tokenizer(), make_users(7), TITLES, name="one").outputs
    assert len(set(alone)) > 1
    assert [process["generated"] for process in found] == [alone, alone]


def test_the_callback_ranks_all_users_in_training(found):
    before = rank_with_model(make_model(), make_tokenizer(), make_users(7), score="sum", name="one")
    first, second = (process["trained"] for process in found)
    for name, value in before.metrics(["ndcg@5", "auc"]).items():
        assert first["before"][f"eval_{name}"] == second["before"][f"eval_{name}"] == pytest.approx(value)
        assert first["after"][f"eval_{name}"] == second["after"][f"eval_{name}"]
    assert not np.isclose(first["before"]["eval_loss"], first["after"]["eval_loss"])
