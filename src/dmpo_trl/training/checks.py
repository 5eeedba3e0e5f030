"""Checks that need a model or a step: token ids, positions, and log-probs that stop being numbers."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..preprocessing.format import TOKEN_COLUMNS, RowError
from ..preprocessing.truncate import token_lengths
from ..preprocessing.validate import is_list_type

logger = logging.get_logger(__name__)

_BATCH = 100_000  # rows


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
    if is_list_type(values.type):
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
