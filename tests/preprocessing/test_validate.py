"""Datasets of one trainer beside each other; what single rows may be is in test_bad_input.py."""

import pytest
from datasets import Dataset, IterableDataset

from dmpo_trl.preprocessing.format import RowError
from dmpo_trl.preprocessing.validate import check_rows, warn_of_uneven_columns

PLAIN = Dataset.from_list([{"prompt": "Alien", "chosen": " Aliens", "rejected": [" Babe"]}])
WITH = PLAIN.add_column("margins", [[1.0]])


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"train": WITH, "eval": PLAIN}, "`margins` is in the train dataset and not in the eval dataset"),
        (
            {"train": PLAIN, "eval_a": WITH, "eval_b": PLAIN},
            "is in the eval_a dataset and not in the train and",
        ),
        ({"train": WITH, "eval": WITH}, ""),
        ({"train": PLAIN, "eval": PLAIN}, ""),
        ({"train": WITH}, ""),
        ({"train": WITH, "eval": IterableDataset.from_generator(lambda: iter([]))}, ""),
    ],
)
def test_a_column_of_the_loss_that_only_some_datasets_have_is_named(datasets, message, caplog):
    warn_of_uneven_columns(datasets)
    assert message in caplog.text
    assert bool(caplog.text) == bool(message)


@pytest.mark.parametrize(
    ("column", "values"), [("ref_chosen_logps", (3.0, [-1.0])), ("ref_rejected_logps", (-3.0, [5.0]))]
)
def test_reference_log_probs_above_0_are_refused(column, values):
    row = {"prompt": "Next:", "chosen": " Alien", "rejected": [" Babe"]}
    good = {"ref_chosen_logps": -3.0, "ref_rejected_logps": [-1.0]}
    bad = dict(zip(good, values, strict=True))
    with pytest.raises(RowError, match=rf"Row 1 .*column `{column}`: a log-prob is at most 0, got \[?[35]"):
        check_rows(Dataset.from_list([row | good, row | bad]), "train")
