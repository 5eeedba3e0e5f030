"""Multi-negative preference losses: pure functions of the log-probs of a batch.

`batch` holds the log-probs and what losses derive from them, `registry` the losses by name, `listwise_losses` and
`pairwise_losses` the losses themselves, `negatives` which negatives of an example count.
"""

from . import listwise_losses, pairwise_losses  # noqa: F401  (they register themselves)
from .batch import ScoredBatch
from .negatives import SELECTIONS, boundary, wpo_weights
from .registry import (
    LOSSES,
    check_columns,
    multi_negative,
    pairwise,
    preference_loss,
    registered,
    trained_score,
    weighted_loss,
)

__all__ = [
    "LOSSES",
    "SELECTIONS",
    "ScoredBatch",
    "boundary",
    "check_columns",
    "multi_negative",
    "pairwise",
    "preference_loss",
    "registered",
    "trained_score",
    "weighted_loss",
    "wpo_weights",
]
