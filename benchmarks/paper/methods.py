"""The methods: what is not trained, SFT, and the preference stages of `methods.yaml`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset

from dmpo_trl.losses import ScoredBatch, pairwise

Scorer = Callable[[Dataset], Sequence[Sequence[float]]]
"""Scores the candidates of each row, in the order of its `items`."""


@dataclass(frozen=True)
class Method:
    """A preference stage.

    Attributes:
        options: Of `DMPOConfig`.
        negatives: Per example.
        drawn: How they are drawn: `uniform`, by `popularity`, or the hardest for the `model` of 20 drawn uniformly.
        positions: `growing`: every position of a user; `last`: the last one alone.
        start: `sft`, or the `base` model, whose one stage then has the tokens of both.
        reference: `model`: the one that training starts from; `no history`: what it says of a title without a history,
            so that the loss trains the pointwise mutual information of title and history.
    """

    options: dict[str, Any]
    negatives: int = 3
    drawn: str = "uniform"
    positions: str = "growing"
    start: str = "sft"
    reference: str = "model"


@pairwise("pairs_without_reference", reference=False)
def pairs_without_reference(batch: ScoredBatch, args: Any) -> torch.Tensor:
    """`-log sigmoid(beta (log pi(y+|x) - log pi(y_i|x)))`.

    The official code of DMPO passes the reference's log-prob of the chosen completion twice, so that it cancels.
    """
    return -F.logsigmoid(batch.logp_deltas)


COUNTS, ZERO_SHOT, SFT, SFT_MORE = "counts", "zero-shot", "sft", "sft more"
TRADITIONAL = {"bpr": 10, "sasrec": 5, "gru4rec": 5}
"""Traditional recommenders, and their epochs with the interactions of all users; with a few users their defaults."""
STAGES = {
    name: Method(**own)
    for name, own in yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8")).items()
}
METHODS = (COUNTS, *TRADITIONAL, ZERO_SHOT, SFT, SFT_MORE, *STAGES)
