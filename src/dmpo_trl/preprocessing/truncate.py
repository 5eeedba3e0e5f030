"""Truncation: which sequences are longer than `max_length`; what is dropped or cut is counted and logged."""

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from .validate import is_list_type

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lengths:
    """Tokens of each prompt and completion of a dataset.

    Attributes:
        prompts: Of each row's prompt, (rows,).
        completions: Of each completion, the chosen ones of all rows, then the rejected ones, (C,).
        rows: The row of each completion, (C,).
        num_chosen: How many of the completions are chosen ones.
    """

    prompts: np.ndarray
    completions: np.ndarray
    rows: np.ndarray
    num_chosen: int

    @property
    def chosen_per_row(self) -> np.ndarray:
        """Number of chosen completions of each row, (rows,)."""
        return np.bincount(self.rows[: self.num_chosen], minlength=len(self.prompts))

    @property
    def rejected_per_row(self) -> np.ndarray:
        """Number of rejected completions of each row, (rows,)."""
        return np.bincount(self.rows[self.num_chosen :], minlength=len(self.prompts))

    @property
    def longest_per_row(self) -> np.ndarray:
        """Tokens of each row's longest sequence, a prompt and a completion, (rows,)."""
        longest = self.prompts.copy()
        np.maximum.at(longest, self.rows, self.prompts[self.rows] + self.completions)
        return longest


def exceeds(dataset: Dataset | IterableDataset, max_length: int | None) -> bool:
    """Return whether a sequence of tokenised examples is longer than `max_length`; of a stream it is not known: True.

    Example:
        >>> exceeds(Dataset.from_list([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[4]]}]), 2)
        True
    """
    if max_length is None:
        return False
    return not isinstance(dataset, Dataset) or bool((token_lengths(dataset).longest_per_row > max_length).any())


def warn_of_shorter_prompts(dataset: Dataset | IterableDataset, dataset_name: str, max_length: int | None) -> None:
    """Name prompts that another `max_length` has shortened more than this one would, when they were tokenised.

    Args:
        dataset: Tokenised examples. Of a stream nothing is said.
        dataset_name: Its name, for messages.
        max_length: Longest sequence, in tokens; None for no limit.
    """
    if not isinstance(dataset, Dataset):
        return
    was_cut = np.asarray(dataset["prompt_tokens_cut"]) > 0
    if shorter := np.count_nonzero(
        was_cut & (token_lengths(dataset).longest_per_row < (np.inf if max_length is None else max_length))
    ):
        logger.warning(
            "%d of the %d prompts of the %s dataset were shortened for a smaller `max_length` when it was tokenised, "
            "and stay so with max_length=%s. Pass the rows that it was made of.",
            *(shorter, len(dataset), dataset_name, max_length),
        )


def drop_and_report(
    dataset: Dataset | IterableDataset, dataset_name: str, max_length: int | None, truncation_mode: str
) -> Dataset | IterableDataset:
    """Drop examples that truncation leaves without a completion, and log everything that it drops or cuts.

    With `"keep_start"` an example whose prompt alone fills `max_length` is dropped, as in TRL. The cutting itself is
    the collator's (`"keep_completion"`: the tokenisation's).

    Args:
        dataset: Tokenised examples.
        dataset_name: Its name, for messages.
        max_length: Longest sequence, in tokens; None for no limit.
        truncation_mode: See `DMPOConfig`.

    Returns:
        The dataset without the dropped examples. A stream is counted while it runs.

    Raises:
        ValueError: Nothing is left; of a stream, nothing of its first 10,000 examples.
    """
    if max_length is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        if truncation_mode != "keep_start":
            return dataset
        if next(iter(dataset.filter(_StreamFilter(dataset_name, max_length))), None) is None:
            raise ValueError(_nothing_left(dataset_name, max_length))
        return dataset.filter(_StreamFilter(dataset_name, max_length))

    lengths = token_lengths(dataset)
    prompts = lengths.prompts
    kept = prompts < max_length if truncation_mode == "keep_start" else np.ones(len(prompts), dtype=bool)
    dropped = int((~kept).sum())
    if dropped:
        logger.warning(
            "%d of the %d examples of the %s dataset are dropped: their prompts alone fill max_length=%d. %s",
            dropped,
            len(kept),
            dataset_name,
            max_length,
            _REMEDY,
        )
    if len(kept) and not kept.any():
        raise ValueError(
            f"Nothing is left of the {dataset_name} dataset: the prompts of all {len(kept)} examples fill "
            f"max_length={max_length} (the shortest has {prompts.min()} tokens). {_REMEDY}"
        )
    if truncation_mode == "keep_completion":
        shortened = np.count_nonzero(np.asarray(dataset["prompt_tokens_cut"]))
        if shortened:
            logger.warning(
                "%d of the %d prompts of the %s dataset are shortened from the left to max_length=%d",
                shortened,
                len(kept),
                dataset_name,
                max_length,
            )
    else:
        of_kept = kept[lengths.rows]
        too_long = int((prompts[lengths.rows] + lengths.completions > max_length)[of_kept].sum())
        if too_long:
            logger.warning(
                "%d of the %d completions of the %s dataset are cut (%s): with their prompts they exceed "
                "max_length=%d. %s",
                too_long,
                int(of_kept.sum()),
                dataset_name,
                "at the end" if truncation_mode == "keep_start" else "their prompts first",
                max_length,
                _REMEDY,
            )
    return dataset.select(np.flatnonzero(kept)) if dropped else dataset


_REMEDY = (
    "Raise `max_length`, or set `truncation_mode='keep_completion'` to shorten the prompt and keep every completion "
    "whole."
)


_STREAM_PATIENCE = 10_000


def _nothing_left(dataset_name: str, max_length: int) -> str:
    return (
        f"Nothing is left of the {dataset_name} dataset: the prompts of all its examples, or of the first "
        f"{_STREAM_PATIENCE:,}, fill max_length={max_length}. {_REMEDY}"
    )


class _StreamFilter:
    """Keeps examples whose prompt leaves room for a completion; logs the count of the others as it doubles."""

    def __init__(self, dataset_name: str, max_length: int) -> None:
        self.dataset_name, self.max_length = dataset_name, max_length
        self.dropped, self.kept = 0, 0

    def __call__(self, example: dict[str, Any]) -> bool:
        if len(example["prompt_ids"]) < self.max_length:
            self.kept += 1
            return True
        self.dropped += 1
        if not self.kept and self.dropped >= _STREAM_PATIENCE:  # a stream may never end
            raise ValueError(_nothing_left(self.dataset_name, self.max_length))
        if self.dropped & (self.dropped - 1) == 0:
            logger.warning(
                "%d examples of the %s dataset so far are dropped: their prompts alone fill max_length=%d. %s",
                self.dropped,
                self.dataset_name,
                self.max_length,
                _REMEDY,
            )
        return False


_measured: WeakKeyDictionary[Dataset, Lengths] = WeakKeyDictionary()


def token_lengths(dataset: Dataset) -> Lengths:
    """Count the tokens of each prompt and completion, once per dataset."""
    if dataset not in _measured:
        _measured[dataset] = _measure(dataset)
    return _measured[dataset]


def _measure(dataset: Dataset) -> Lengths:
    prompts: list[np.ndarray] = []
    chosen: list[np.ndarray] = []
    rejected: list[np.ndarray] = []
    offset = 0
    columns = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format("arrow")
    for table in columns.iter(batch_size=10_000):
        prompts.append(pc.list_value_length(table["prompt_ids"].combine_chunks()).to_numpy())
        for name, parts in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            column = table[name].combine_chunks()
            rows = np.arange(len(column))
            if is_list_type(column.type.value_type):
                rows, column = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
            parts.append(np.stack([pc.list_value_length(column).to_numpy(), rows + offset]))
        offset += len(table)
    if not prompts:
        empty = np.zeros(0, dtype=int)
        return Lengths(empty, empty, empty, 0)
    completions, rows = np.concatenate([*chosen, *rejected], axis=1)
    return Lengths(np.concatenate(prompts), completions, rows, sum(part.shape[1] for part in chosen))


def max_num_rejected(dataset: Dataset) -> int:
    """Return the largest number of rejected completions in a row of `dataset`."""
    return int(token_lengths(dataset).rejected_per_row.max(initial=0))


def max_num_chosen(dataset: Dataset) -> int | None:
    """Return the largest number of chosen completions in a row of `dataset`; None where rows have one, in no list."""
    if not is_list_type(dataset.data.schema.field("chosen_ids").type.value_type):
        return None
    return int(token_lengths(dataset).chosen_per_row.max(initial=0))
