"""Batches of a bounded number of tokens: formed in parallel, by one process for all, and cached."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher

from .. import __version__
from .token_count import counts_without_layout, make_counter

# Rows whose batches are formed alone, so that it does not matter which worker does: its last batch may be smaller
_CHUNK = 2**14


def batches_within_budget(
    order: Sequence[int], count_tokens: Callable[[Sequence[int]], int], max_tokens: int, max_examples: int
) -> list[list[int]]:
    """Cut an order of examples into batches of at most `max_tokens` tokens and `max_examples` examples.

    An example that alone has more tokens becomes a batch of its own.

    Args:
        order: Indices of the examples.
        count_tokens: Number of tokens of a batch, given its indices.
        max_tokens: The budget.
        max_examples: Most examples per batch.
    """
    batches = []
    start = 0
    while start < len(order):
        sizes = range(2, min(max_examples, len(order) - start) + 1)
        fitting = bisect_left(sizes, True, key=lambda n: count_tokens(order[start : start + n]) > max_tokens)
        batches.append(list(order[start : start + fitting + 1]))
        start += fitting + 1
    return batches


def form_batches(
    dataset: Dataset,
    order: Sequence[int],
    collate: Callable[[list[dict[str, Any]]], Any],
    max_tokens: int,
    max_examples: int,
    *,
    num_proc: int | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Form batches as [`batches_within_budget`] does, in chunks of 16,384 rows.

    The main process forms them and tells the others. What it found is kept among the dataset's cache files, where it
    has any, and read from there the next time.

    Args:
        dataset: Tokenised examples.
        order: Indices of its examples.
        collate: The collator. One of a user's own lays every batch out, in this process alone, each time.
        max_tokens: The budget.
        max_examples: Most examples per batch.
        num_proc: Number of worker processes.

    Returns:
        The batches, and the numbers of tokens of examples that alone have more than `max_tokens`.
    """
    formed: list[Any] = [None]
    if PartialState().is_main_process:
        formed = [_formed(dataset, order, collate, max_tokens, max_examples, num_proc)]
    broadcast_object_list(formed)
    sizes, over = formed[0]
    batches = [list(order[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))]
    return batches, over


def _formed(
    dataset: Dataset, order: Sequence[int], collate: Any, max_tokens: int, max_examples: int, num_proc: int | None
) -> tuple[list[int], list[int]]:
    """Return the numbers of examples of the batches, and the numbers of tokens of examples that exceed the budget."""
    counted = counts_without_layout(collate)
    chunks = Dataset.from_dict({"start": list(range(0, len(order), _CHUNK))})
    settings = (vars(collate) if counted else None, max_tokens, max_examples, __version__)
    fingerprint = Hasher.hash((dataset._fingerprint, array("q", order).tobytes(), settings))
    cached = counted and bool(dataset.cache_files)
    formed = chunks.map(
        _form_chunk,
        fn_kwargs={
            "dataset": dataset,
            "order": order,
            "collate": collate,
            "max_tokens": max_tokens,
            "max_examples": max_examples,
        },
        remove_columns=["start"],
        features=Features({"sizes": [Value("int64")], "over": [Value("int64")]}),
        num_proc=min(num_proc, len(chunks)) if num_proc and counted and len(chunks) > 1 else None,
        new_fingerprint=fingerprint,
        cache_file_name=dataset._get_cache_file_path(fingerprint) if cached else None,
        desc=f"Forming batches of {max_tokens} tokens",
    )
    return list(chain.from_iterable(formed["sizes"])), list(chain.from_iterable(formed["over"]))


def _form_chunk(
    row: dict[str, int], dataset: Dataset, order: Sequence[int], collate: Any, max_tokens: int, max_examples: int
) -> dict[str, list[int]]:
    chunk = order[row["start"] : row["start"] + _CHUNK]
    count_tokens = make_counter(collate, dataset, chunk)
    batches = batches_within_budget(chunk, count_tokens, max_tokens, max_examples)
    over = [tokens for batch in batches if len(batch) == 1 and (tokens := count_tokens(batch)) > max_tokens]
    return {"sizes": list(map(len, batches)), "over": over}
