"""Dataset preparation: from the rows of a dataset to their token ids."""

import logging
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .format import TOKEN_COLUMNS, numbered_columns
from .tokenize import tokenize_row
from .truncate import drop_and_report, exceeds, warn_of_shorter_prompts

logger = logging.getLogger(__name__)


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    max_length: int | None,
    truncation_mode: str,
    special_tokens_in_text: bool | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokenise the rows of a dataset, and drop those that truncation leaves without a completion.

    Args:
        dataset: Rows (see `preprocessing.format`). Of one that was tokenised before, here or by another trainer, only
            what has become too long is cut or dropped.
        name: Its name, for messages.
        processing_class: Tokenizer or processor.
        max_length: Longest sequence, in tokens; None for no limit.
        truncation_mode: See `DMPOConfig`.
        special_tokens_in_text: See `DMPOConfig`.
        num_proc: Number of processes that tokenise. A stream is tokenised while it runs.

    Raises:
        RowError: A row breaks the data contract.
        ValueError: Nothing is left.
    """
    dataset = dataset.with_format(None)  # rows are read as Python objects
    columns = set(next(iter(dataset), {}))
    if columns.issuperset((*TOKEN_COLUMNS, "prompt_tokens_cut")):
        warn_of_shorter_prompts(dataset, name, max_length)
        if truncation_mode != "keep_completion" or not exceeds(dataset, max_length):
            return drop_and_report(dataset, name, max_length, truncation_mode)
    if folded := numbered_columns(columns):
        logger.info("The columns %s of the %s dataset are folded into `rejected`", folded, name)
    options: dict[str, Any] = {}
    if isinstance(dataset, Dataset):  # `IterableDataset.map` knows neither
        options = {"num_proc": num_proc, "desc": f"Tokenizing {name} dataset"}
    dataset = dataset.map(
        tokenize_row,
        with_indices=True,
        fn_kwargs={
            "dataset_name": name,
            "processing_class": processing_class,
            "max_length": max_length,
            "truncation_mode": truncation_mode,
            "special_tokens_in_text": special_tokens_in_text,
        },
        **options,
    )
    return drop_and_report(dataset, name, max_length, truncation_mode)
