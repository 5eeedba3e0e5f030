"""Evaluation of a saved model beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..modeling.loading import cast_adapter, load_model_and_tokenizer
from ..scoring import SCORES, check_tokens_per_batch
from ..work import ResultParts
from .ranking import rank_at_random, rank_by_log_prob, rank_by_popularity, score_candidates
from .result import RankingResult


def evaluate_model(
    path: str,
    dataset: Dataset,
    popularity: Mapping[str, float],
    *,
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
    parts: ResultParts | None = None,
    **model_options: Any,
) -> dict[str, RankingResult]:
    """Rank with a saved model, by both kinds of score, and with its baselines.

    Under `accelerate launch` or `torchrun` the processes share the users.

    Args:
        path: Folder or hub id of a model or an adapter.
        dataset: Columns of [`ranking_dataset`]; a [`full_catalogue`] for all items as candidates.
        popularity: Count by item, see [`rank_by_popularity`].
        tokens_per_batch: See [`score_completions`].
        special_tokens_in_text: See [`score_completions`].
        parts: See [`score_candidates`].
        **model_options: See [`load_for_ranking`].

    Returns:
        The results `random`, `popularity`, `sum` and `mean`: the last two are the model's, see [`rank_by_log_prob`].

    Example:
        >>> results = evaluate_model("outputs/dmpo", users, popularity)  # doctest: +SKIP
        >>> print(results["mean"].intervals()["ndcg@5"])  # doctest: +SKIP
    """
    check_tokens_per_batch(tokens_per_batch)  # before the model is loaded
    model, tokenizer = load_for_ranking(path, **model_options)
    return rank_beside_baselines(
        model,
        tokenizer,
        dataset,
        popularity,
        tokens_per_batch=tokens_per_batch,
        special_tokens_in_text=special_tokens_in_text,
        parts=parts,
    )


def load_for_ranking(path: str, **model_options: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, to this process's device. An adapter has the type of its model.

    Args:
        path: Folder or hub id of a model or an adapter.
        **model_options: For `from_pretrained`, such as `revision`. By default the weights keep their `dtype` on a GPU
            and are float32 on a CPU, where half precision is slow; `device_map` spreads the model over devices.

    Example:
        >>> model, tokenizer = load_for_ranking("outputs/dmpo", revision="v2")  # doctest: +SKIP
    """
    device = PartialState().device
    dtype = "float32" if device.type == "cpu" else "auto"
    model, tokenizer = load_model_and_tokenizer(path, **{"dtype": dtype} | model_options)
    if "device_map" not in model_options:
        model.to(device)
    return cast_adapter(model), tokenizer


def rank_beside_baselines(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    popularity: Mapping[str, float],
    *,
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
    parts: ResultParts | None = None,
) -> dict[str, RankingResult]:
    """Rank with a loaded model, by both kinds of score, and with its baselines.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        dataset: See [`evaluate_model`].
        popularity: See [`evaluate_model`].
        tokens_per_batch: See [`evaluate_model`].
        special_tokens_in_text: See [`evaluate_model`].
        parts: See [`score_candidates`].

    Returns:
        As [`evaluate_model`].

    Raises:
        ValueError: As in [`RankingResult.of`], before anything is scored.

    Example:
        >>> results = rank_beside_baselines(model, tokenizer, users, popularity)  # doctest: +SKIP
    """
    results = [rank_at_random(dataset), rank_by_popularity(dataset, popularity)]  # refuse faulty candidates at once
    scored = score_candidates(
        model,
        tokenizer,
        dataset,
        tokens_per_batch=tokens_per_batch,
        special_tokens_in_text=special_tokens_in_text,
        progress="ranking",
        parts=parts,
    )
    results += [rank_by_log_prob(dataset, scored, score=score, name=score) for score in SCORES]
    return {result.name: result for result in results}
