"""Validation of datasets: bad rows are found before the tokenisation, which may take an hour.

Rows are looked at in Arrow's columns, millions in a second, and only those that look suspicious in Python.
`tokenize_row` has the last word, row by row.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from .format import (
    CHOSEN_COLUMNS,
    HIGHEST_LOG_PROB,
    PAIR_COLUMNS,
    REFERENCE_COLUMNS,
    TOKEN_COLUMNS,
    VALUE_COLUMNS,
    RowError,
    check_values,
    numbered_columns,
    read_row,
    read_tokens,
)

logger = logging.getLogger(__name__)

_BATCH = 100_000  # rows


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Return the datasets of a trainer by their names in messages."""
    if isinstance(eval_dataset, dict):
        evaluation = {f"eval_{name}": dataset for name, dataset in eval_dataset.items()}
    else:
        evaluation = {"eval": eval_dataset}
    return {name: dataset for name, dataset in {"train": train_dataset, **evaluation}.items() if dataset is not None}


def shown_name(key: str) -> str:
    """Return a dataset's name in messages: TRL calls one of several evaluation datasets by its key alone."""
    return key if key in ("train", "eval") else f"eval_{key}"


def warn_of_uneven_columns(datasets: Mapping[str, Any]) -> None:
    """Name optional columns of the loss that only some datasets have: the losses of the others mean something else.

    Args:
        datasets: As [`named_datasets`] returns them. Of a stream without known columns nothing is said.
    """
    columns = {name: set(getattr(dataset, "column_names", None) or ()) for name, dataset in datasets.items()}
    for column in (*CHOSEN_COLUMNS, *PAIR_COLUMNS, *REFERENCE_COLUMNS):
        having = [name for name, own in columns.items() if column in own]
        without = [name for name, own in columns.items() if own and column not in own]
        if having and without:
            logger.warning(
                "The column `%s` is in the %s dataset and not in the %s dataset, whose loss is computed without it: "
                "the two cannot be compared. Add the column, or take it out.",
                *(column, " and ".join(having), " and ".join(without)),
            )


def check_rows(dataset: Dataset | IterableDataset, name: str) -> None:
    """Refuse a dataset without rows, or with one that visibly breaks the data contract.

    Found are missing columns, wrong types, nulls, empty lists, and texts equal to a chosen one. Of a stream only
    the first row can be looked at, the others are checked when they come. Rows with images are left to their collator.

    Raises:
        TypeError: It is not a dataset.
        ValueError: It has no rows.
        RowError: A row breaks the data contract.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"The {name} dataset must be a `Dataset` or `IterableDataset`, got `{type(dataset).__name__}`. Make one "
            "of rows with `Dataset.from_list`, and choose a split of a `DatasetDict`."
        )
    dataset = dataset.with_format(None)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"The {name} dataset has no rows. Check its path and split, and what filtered it.")
    if "image" in first or "images" in first:
        return
    tokenised = first.keys() >= set(TOKEN_COLUMNS)

    def read(row: dict[str, Any], error: Any) -> None:
        (read_tokens if tokenised else read_row)(row, error)
        check_values(row, error)

    # A column has one type, so the first row speaks for the types of all
    read(first, partial(RowError, name, 0))
    if isinstance(dataset, Dataset):
        columns = TOKEN_COLUMNS if tokenised else ("prompt", "chosen", "rejected", *numbered_columns(first))
        dataset = dataset.select_columns([column for column in (*columns, *VALUE_COLUMNS) if column in first])
        for index in _suspects(dataset):
            read(dataset[index], partial(RowError, name, index))


def _suspects(dataset: Dataset) -> Iterator[int]:
    """Yield rows with a null, an empty list, a text equal to a chosen one, or too few numbers, in order."""
    offset = 0
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        columns = {column: table[column].combine_chunks() for column in table.column_names}
        values = {name: columns.pop(name) for name in VALUE_COLUMNS if name in columns}
        chosen = next(columns[name] for name in ("chosen_ids", "chosen") if name in columns)
        several = _is_list_of_completions(chosen.type)
        kind = chosen.type.value_type if several else chosen.type
        suspects = np.zeros(len(table), dtype=bool)
        counts = np.zeros(len(table), dtype=int)
        sides = []  # the rejected completions of each column, and their rows
        for name, column in columns.items():
            if not name.startswith(("rejected", "negative")):
                suspects |= _is_missing(column)
            elif is_list_type(column.type) and (not is_list_type(kind) or is_list_type(column.type.value_type)):
                counts += _numbers_of_entries(column)
                entries, owners = pc.list_flatten(column), pc.list_parent_indices(column)
                suspects[owners.to_numpy(zero_copy_only=False)[_is_missing(entries)]] = True
                sides.append((entries, owners))
            else:  # one completion, or a null for none
                counts += column.is_valid().to_numpy(zero_copy_only=False)
                sides.append((column, pa.array(np.arange(len(column)))))
        if several:
            entries, owners = pc.list_flatten(chosen), pc.list_parent_indices(chosen)
            suspects[owners.to_numpy(zero_copy_only=False)[_is_missing(entries)]] = True
            suspects[_rows_of_equal_texts((entries, owners), *sides)] = True
        else:
            for entries, owners in sides:
                suspects[owners.to_numpy(zero_copy_only=False)[_are_equal(entries, chosen.take(owners))]] = True
        for name, column in values.items():
            of_chosen = name in (*CHOSEN_COLUMNS, REFERENCE_COLUMNS[0])
            highest = HIGHEST_LOG_PROB if name in REFERENCE_COLUMNS else np.inf
            expected = _numbers_of_entries(chosen) if of_chosen and several else counts
            suspects |= _are_not_numbers(column, expected, highest)
        yield from (offset + np.flatnonzero(suspects | (counts == 0))).tolist()
        offset += len(table)


def is_list_type(kind: pa.DataType) -> bool:
    """Return whether an Arrow column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_list_of_completions(kind: pa.DataType) -> bool:
    """Return whether a column `chosen` or `chosen_ids` of this type holds several completions a row."""
    return is_list_type(kind) and (is_list_type(kind.value_type) or _is_text(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _numbers_of_entries(column: pa.Array) -> np.ndarray:
    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)


def _is_missing(column: pa.Array) -> np.ndarray:
    missing = column.is_null()
    if is_list_type(column.type):
        missing = pc.or_(missing, pc.equal(pc.list_value_length(column).fill_null(0), 0))
    return missing.to_numpy(zero_copy_only=False)


def _are_not_numbers(column: pa.Array, counts: np.ndarray, highest: float) -> np.ndarray:
    """Return whether a row lacks a finite number up to `highest`: for a rejected completion, or for the chosen one."""
    bad = column.is_null().to_numpy(zero_copy_only=False)
    owners = np.arange(len(column))
    if is_list_type(column.type):
        bad |= _numbers_of_entries(column) != counts
        owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        column = pc.list_flatten(column)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return np.ones(len(bad), dtype=bool)
    numbers = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    bad[owners[~(np.isfinite(numbers) & (numbers <= highest))]] = True
    return bad


def _are_equal(column: pa.Array, other: pa.Array) -> np.ndarray:
    if not (column.type == other.type and _is_text(column.type)):
        return np.zeros(len(column), dtype=bool)  # Arrow does not compare lists
    return pc.equal(column, other).fill_null(False).to_numpy(zero_copy_only=False)


def _rows_of_equal_texts(chosen: tuple[pa.Array, pa.Array], *rejected: tuple[pa.Array, pa.Array]) -> np.ndarray:
    """Return rows in which a text stands twice, once at least among the chosen ones."""
    sides = [chosen, *((texts, rows) for texts, rows in rejected if texts.type == chosen[0].type)]
    if not _is_text(chosen[0].type):
        return np.zeros(0, dtype=int)
    texts = pa.concat_arrays([texts for texts, _ in sides]).dictionary_encode().indices
    rows = np.concatenate([rows.to_numpy(zero_copy_only=False) for _, rows in sides])
    # One number for each row and text. A null is missing anyway
    keys = rows * (len(texts) + 1) + texts.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    found, counts = np.unique(keys[: len(chosen[0])], return_counts=True)
    bad = np.isin(keys[len(chosen[0]) :], found)
    return np.concatenate([rows[len(chosen[0]) :][bad], found[counts > 1] // (len(texts) + 1)])
