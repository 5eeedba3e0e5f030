"""Turn language models into recommenders by preference optimisation with any number of negatives.

Names are imported when first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching.collator import DataCollatorForMultiPreference
    from .batching.vision import DataCollatorForVisionMultiPreference
    from .config import DMPOConfig
    from .losses import ScoredBatch, multi_negative, pairwise
    from .preprocessing.format import RowError
    from .scoring import CompletionScores, score_completions
    from .trainer import DMPOTrainer

__all__ = [
    "CompletionScores",
    "DMPOConfig",
    "DMPOTrainer",
    "DataCollatorForMultiPreference",
    "DataCollatorForVisionMultiPreference",
    "RowError",
    "ScoredBatch",
    "multi_negative",
    "pairwise",
    "score_completions",
]
__version__ = version("dmpo-trl")

_MODULES = {
    "CompletionScores": "scoring",
    "DMPOConfig": "config",
    "DMPOTrainer": "trainer",
    "DataCollatorForMultiPreference": "batching.collator",
    "DataCollatorForVisionMultiPreference": "batching.vision",
    "RowError": "preprocessing.format",
    "ScoredBatch": "losses",
    "multi_negative": "losses",
    "pairwise": "losses",
    "score_completions": "scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
