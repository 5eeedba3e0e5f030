"""Options of a training run, which `dmpo-trl train` and `dmpo-trl estimate` take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .options import check_at_least

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig


@dataclass
class TrainArguments:
    """What a training does beside the options of `trl dpo` and `DMPOConfig`."""

    ranking_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote. Its users are ranked at each evaluation (set "
            "--eval_strategy), and the metrics are logged as eval_ndcg@5 and so on, which "
            "`--metric_for_best_model eval_ndcg@5` can name."
        },
    )
    ranking_split: Literal["validation", "test"] = field(
        default="validation", metadata={"help": "Which users of the folder."}
    )
    ranking_users: int | None = field(
        default=None, metadata={"help": "Rank only this many of them, the first ones. Default: all."}
    )
    ranking_score: Literal["sum", "mean"] | None = field(
        default=None,
        metadata={
            "help": "Rank by log-prob, its sum or its mean per token; saved with the model. Default: what the loss "
            "trains, the sum but for losses of means."
        },
    )
    max_negatives: int | None = field(
        default=None,
        metadata={"help": "Train on the first N rejected completions of each row. Default: all of them."},
    )
    reference: Literal["model", "no_history"] = field(
        default="model",
        metadata={
            "help": "What a loss compares with: what the model says at the beginning, or what it says then of a "
            "title without any history, so that what is trained is what `evaluate --fuse no_history` ranks by. The "
            "latter is for titles of very different lengths, and for data of `dmpo-trl prepare`."
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from the last whole checkpoint of --output_dir, or start at the beginning where there is "
            "none: the same command with --resume can be run until training is done. Half-written checkpoints are "
            "renamed to incomplete-checkpoint-N, never used and never deleted."
        },
    )
    report: str | None = field(
        default=None,
        metadata={
            "help": "Also write one page for a browser to this file (.html): the curves of loss, margins and ranking. "
            "It needs nothing beside it, and replaces an earlier such page."
        },
    )

    def __post_init__(self) -> None:
        """Check numbers and names."""
        check_at_least(self, ranking_users=1, max_negatives=1)
        check_page_name(self.report)


def check_page_name(report: str | None) -> None:
    """Refuse a name of a page that no browser would open.

    Args:
        report: The value of `--report`.

    Raises:
        ValueError: It does not end in `.html` or `.htm`.

    Example:
        >>> check_page_name("report.pdf")
        Traceback (most recent call last):
        ...
        ValueError: --report writes a page for a browser, FILE.html, not 'report.pdf'.
    """
    if report is not None and not report.endswith((".html", ".htm")):
        raise ValueError(f"--report writes a page for a browser, FILE.html, not {report!r}.")


def argument_types() -> tuple[Any, ...]:
    """Return the dataclasses of the options: those of `trl dpo`, with our config, and ours."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import DMPOConfig

    return ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, TrainArguments


def adapter_options(path: str, is_adapter: bool, model: ModelConfig) -> PeftConfig | None:
    """Return the options of a new adapter, None where none is asked for.

    Args:
        path: Folder or hub id of the model.
        is_adapter: Whether that is an adapter.
        model: The options of the command line.

    Raises:
        ValueError: An adapter would be put on an adapter.
    """
    from trl import get_peft_config

    adapter = get_peft_config(model)
    if is_adapter and adapter is not None:
        raise ValueError(
            f"--model_name_or_path {path} is an adapter, which goes on training: leave --use_peft out. To train a new "
            "adapter instead, merge this one into its base model first."
        )
    return adapter
