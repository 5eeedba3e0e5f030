"""Truncation: which sequences are longer than `max_length`; what is dropped or cut is counted and logged."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

Lengths = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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

    prompts, chosen, rejected, owners = token_lengths(dataset)
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
        too_long = int((prompts + chosen > max_length)[kept].sum())
        too_long += int((prompts[owners] + rejected > max_length)[kept[owners]].sum())
        if too_long:
            logger.warning(
                "%d of the %d completions of the %s dataset are cut (%s): with their prompts they exceed "
                "max_length=%d. %s",
                too_long,
                int(kept.sum() + kept[owners].sum()),
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
    """Count the tokens of each prompt, chosen and rejected completion, and name the row of each rejected one.

    Measured once per dataset.
    """
    if dataset not in _measured:
        _measured[dataset] = _measure(dataset)
    return _measured[dataset]


def _measure(dataset: Dataset) -> Lengths:
    parts: list[Lengths] = []
    offset = 0
    columns = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format("arrow")
    for table in columns.iter(batch_size=10_000):
        prompt, chosen, rejected = (table[name].combine_chunks() for name in table.column_names)
        parts.append(
            (
                pc.list_value_length(prompt).to_numpy(),
                pc.list_value_length(chosen).to_numpy(),
                pc.list_value_length(pc.list_flatten(rejected)).to_numpy(),
                pc.list_parent_indices(rejected).to_numpy() + offset,
            )
        )
        offset += len(table)
    if not parts:
        empty = np.zeros(0, dtype=int)
        return empty, empty, empty, empty
    prompts, chosens, rejecteds, owners = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return prompts, chosens, rejecteds, owners


def max_num_rejected(dataset: Dataset) -> int:
    """Return the largest number of rejected completions in a row of `dataset`."""
    owners = token_lengths(dataset)[3]
    return int(np.bincount(owners).max()) if len(owners) else 0
