"""What would end a training run late or badly, found before its first step.

Rows are looked at in Arrow's columns, millions in a second, and only those that look suspicious in Python: a bad last
row is found before the tokenisation takes its hour. `tokenize_row` has the last word, row by row.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..preprocessing.format import TOKEN_COLUMNS, RowError, numbered_columns, read_row, read_tokens
from ..preprocessing.truncate import token_lengths

logger = logging.get_logger(__name__)

_BATCH = 100_000  # rows


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """The datasets of a trainer by their names in messages."""
    if isinstance(eval_dataset, dict):
        evaluation = {f"eval_{name}": dataset for name, dataset in eval_dataset.items()}
    else:
        evaluation = {"eval": eval_dataset}
    return {name: dataset for name, dataset in {"train": train_dataset, **evaluation}.items() if dataset is not None}


def check_rows(dataset: Dataset | IterableDataset, name: str) -> None:
    """Refuse a dataset without rows, or with one that visibly breaks the data contract.

    Found are missing columns, wrong types, nulls, empty lists, and texts equal to the chosen one. Of a stream only
    the first row can be looked at, the others are checked when they come. Rows with images are left to their collator.

    Raises:
        TypeError: It is no dataset.
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
    read = read_tokens if tokenised else read_row
    # A column has one type, so the first row speaks for the types of all
    read(first, partial(RowError, name, 0))
    if isinstance(dataset, Dataset):
        columns = TOKEN_COLUMNS if tokenised else ("prompt", "chosen", "rejected", *numbered_columns(first))
        dataset = dataset.select_columns([column for column in columns if column in first])
        for index in _suspects(dataset):
            read(dataset[index], partial(RowError, name, index))


def _suspects(dataset: Dataset) -> Iterator[int]:
    """Rows with a null, an empty list, or a rejected text that is the chosen one, in their order."""
    offset = 0
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        columns = {column: table[column].combine_chunks() for column in table.column_names}
        chosen = next(columns[name] for name in ("chosen_ids", "chosen") if name in columns)
        suspects = np.zeros(len(table), dtype=bool)
        counts = np.zeros(len(table), dtype=int)
        for name, column in columns.items():
            if not name.startswith(("rejected", "negative")):
                suspects |= _is_missing(column)
            elif _is_list(column.type) and (not _is_list(chosen.type) or _is_list(column.type.value_type)):
                counts += pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
                owners = pc.list_parent_indices(column)
                entries = pc.list_flatten(column)
                bad = _is_missing(entries) | _are_equal(entries, chosen.take(owners))
                suspects[owners.to_numpy(zero_copy_only=False)[bad]] = True
            else:  # one completion, or a null for none
                counts += column.is_valid().to_numpy(zero_copy_only=False)
                suspects |= _are_equal(column, chosen)
        yield from (offset + np.flatnonzero(suspects | (counts == 0))).tolist()
        offset += len(table)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_missing(column: pa.Array) -> np.ndarray:
    missing = column.is_null()
    if _is_list(column.type):
        missing = pc.or_(missing, pc.equal(pc.list_value_length(column).fill_null(0), 0))
    return missing.to_numpy(zero_copy_only=False)


def _are_equal(column: pa.Array, other: pa.Array) -> np.ndarray:
    if not (column.type == other.type and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))):
        return np.zeros(len(column), dtype=bool)  # Arrow does not compare lists
    return pc.equal(column, other).fill_null(False).to_numpy(zero_copy_only=False)


def check_limits(
    dataset: Dataset | IterableDataset,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> None:
    """Refuse token ids and lengths that the model has no embedding for, which torch reports as an index out of range.

    Args:
        dataset: Tokenised examples. Of a stream, what its tokenizer and `max_length` allow is checked instead.
        name: Its name, for messages.
        model: A transformers model.
        tokenizer: The tokenizer.
        max_length: Longest sequence, in tokens; None for no limit.

    Raises:
        ValueError: The model cannot take a row (a `RowError`), or what a stream may bring.
    """
    known: Any = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)
    positions = _learned_positions(model)
    remedy = "Call `model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer"
    # The last token of a sequence is predicted, and predicts nothing
    length_remedy = f"Set `max_length` to at most {positions + 1}" if positions < math.inf else ""
    limit = math.inf if max_length is None else max_length
    if isinstance(dataset, IterableDataset):
        largest = max(tokenizer.get_vocab().values())
        if largest >= known:
            raise ValueError(
                f"The tokenizer of the {name} dataset has token ids up to {largest}, and the model embeddings for "
                f"{known} tokens. {remedy}."
            )
        if limit - 1 > positions:
            raise ValueError(
                f"The model has {positions} positions, and `max_length={max_length}` lets the {name} dataset exceed "
                f"them. {length_remedy}."
            )
        return
    offset = 0
    table_columns = dataset.select_columns(list(TOKEN_COLUMNS)).with_format("arrow")
    for table in table_columns.iter(batch_size=_BATCH):
        for column in TOKEN_COLUMNS:
            tokens, owners = _tokens(table[column].combine_chunks())
            if len(tokens) and tokens.max() >= known:
                worst = int(np.argmax(tokens >= known))
                raise RowError(
                    name,
                    offset + int(owners[worst]),
                    column,
                    f"token {tokens[worst]} is unknown to the model, which has embeddings for {known} tokens",
                    remedy,
                )
        offset += len(table)
    if limit - 1 > positions:
        prompts, chosen, rejected, owners = token_lengths(dataset)
        longest = prompts + chosen
        np.maximum.at(longest, owners, prompts[owners] + rejected)
        longest = np.minimum(longest, limit)
        if (longest - 1 > positions).any():
            row = int(np.argmax(longest - 1 > positions))
            raise RowError(
                name,
                row,
                "prompt",
                f"with its completions it has {int(longest[row])} tokens, and the model {positions} positions",
                length_remedy,
            )


def _learned_positions(model: PreTrainedModel) -> int | float:
    """Positions that the model has an embedding for; infinite where it computes them."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = {
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()
    }
    # OPT's table begins with two rows for padding
    return positions if positions and tables & {positions, positions + 2} else math.inf


def _tokens(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of a column of lists, or of lists of lists, and the row of each."""
    owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(column)
    if _is_list(values.type):
        owners = owners[pc.list_parent_indices(values).to_numpy(zero_copy_only=False)]
        values = pc.list_flatten(values)
    return values.to_numpy(zero_copy_only=False), owners


def check_step(margin: float, step: int, fp16: bool) -> None:
    """Stop a run whose loss is not a number any more, before an optimizer step makes all its weights so.

    Transformers leaves such losses out of its logs (`logging_nan_inf_filter`) and trains on.

    Args:
        margin: The step's mean reward margin, over all processes.
        step: Number of optimizer steps made.
        fp16: Whether training is in float16, by autocast or by its weights: then it is a warning, as overflows are
            to be expected, and with `fp16=True` the gradient scaler skips the step.

    Raises:
        FloatingPointError: The margin is not finite.
    """
    if math.isfinite(margin):
        return
    problem = f"The log-probs of a batch are not finite after {step} optimizer steps."
    if fp16:
        logger.warning_once(
            f"{problem} float16 overflows above 65,504. With `fp16=True` the step is skipped; weights that are "
            "float16 themselves may become NaN. If it lasts, train in bf16 or fp32."
        )
        return
    raise FloatingPointError(
        f"{problem} The weights are still those of before this batch: the last checkpoint is good. Lower "
        "`learning_rate` or `max_grad_norm`, or train in bf16 or fp32."
    )
