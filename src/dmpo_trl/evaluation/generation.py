"""Free generation: how many of the texts that a model generates are items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..modeling.generation import generate_greedily, stop_tokens
from ..modeling.limits import Limits
from ..preprocessing.tokenize import tokenize_completions
from ..work import ResultParts, describe_scoring, is_sharded, on_main_process, over_processes
from .intervals import Interval, bootstrap_mean

# `tokenize_completions` for one tokenizer
Tokenize = Callable[[Any, Sequence[Any]], tuple[list[int], list[list[int]]]]


@dataclass(frozen=True)
class GenerationResult:
    """A model's own text after every user's prompt.

    Args:
        name: Name of the model.
        users: Identifiers of the users, in the order of the other fields.
        outputs: The texts, without white space around them.
        in_catalogue: Whether each text is the title of an item, (U,).
        in_candidates: Whether it is the title of one of the user's candidates, (U,): LLaRA's valid ratio (Liao et al.,
            SIGIR 2024, "LLaRA"). A model can only know the candidates from a prompt that lists them.
        hits: Whether it is the title of the user's relevant item, (U,): HR@1 among all possible texts.

    Example:
        >>> users, outputs = ["u1", "u2"], ["Alien", "A film"]
        >>> valid, hits = np.array([True, False]), np.array([False, False])
        >>> GenerationResult("model", users, outputs, valid, valid, hits).metrics()
        {'valid': 0.5, 'valid_candidate': 0.5, 'hr@1': 0.0}
    """

    name: str
    users: list[str]
    outputs: list[str]
    in_catalogue: np.ndarray
    in_candidates: np.ndarray
    hits: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Return shares of the users: `valid` (in the catalogue), `valid_candidate` and `hr@1`."""
        return {name: float(values.mean()) for name, values in self._per_user().items()}

    def intervals(self, *, confidence: float = 0.95) -> dict[str, Interval]:
        """Return the same with bootstrap confidence intervals over the users.

        Args:
            confidence: Confidence level of the intervals.

        Raises:
            ValueError: There are fewer than two users.
        """
        return {name: bootstrap_mean(values, confidence=confidence) for name, values in self._per_user().items()}

    def _per_user(self) -> dict[str, np.ndarray]:
        values = {"valid": self.in_catalogue, "valid_candidate": self.in_candidates, "hr@1": self.hits}
        return {name: own.astype(float) for name, own in values.items()}


def generate_items(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    titles: Collection[str],
    *,
    name: str,
    batch_size: int = 16,
    special_tokens_in_text: bool | None = None,
    parts: ResultParts | None = None,
) -> GenerationResult:
    """Let a model complete each prompt greedily, and compare the texts with the titles, letter by letter.

    A text is an item only if the whole of it is a title: a model that goes on after a title has not learnt to
    recommend. Several processes share the users, as in [`score_candidates`].

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        dataset: Columns of [`ranking_dataset`].
        titles: Titles of the whole catalogue.
        name: Name of the result, also shown on the progress bar.
        batch_size: Number of prompts generated together.
        special_tokens_in_text: See [`score_completions`].
        parts: See [`score_candidates`].

    Returns:
        The texts, and which of them are items.

    Raises:
        ValueError: There are no users, or no titles, `batch_size` is below 1, or a prompt has a token or a length that
            the model has no embedding for.

    Example:
        >>> result = generate_items(model, tokenizer, users, ["Alien", "Heidi"], name="model")  # doctest: +SKIP
        >>> result.metrics()["valid"]  # doctest: +SKIP
    """
    if len(dataset) == 0 or len(titles) == 0:
        raise ValueError(f"There are {len(dataset)} users and {len(titles)} titles; generation needs some of both.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    questions = dataset.select_columns(["user", "prompt", "candidates"])
    tokenize = partial(
        tokenize_completions,
        tokenizer,
        special_tokens_in_text=special_tokens_in_text,
    )
    longest = _longest_title(tokenize, questions[0], titles)

    def generate(rows: Sequence[int]) -> list[str]:
        bar = None if parts else on_main_process(name)
        return _generate(model, tokenizer, tokenize, questions.select(rows), longest, batch_size, bar)

    if parts is None:
        outputs = over_processes(generate, range(len(dataset)), model)
    else:
        options = {"longest": longest, "batch_size": batch_size, "special_tokens_in_text": special_tokens_in_text}
        outputs = parts.over(
            lambda rows: over_processes(generate, rows, model),
            questions,
            made_of=describe_scoring(model, tokenizer, **options),
            to_frame=lambda texts: pl.DataFrame({"text": texts}, schema={"text": pl.String}),
            from_frame=lambda frame: frame["text"].to_list(),
            progress=on_main_process(name),
        )
    catalogue = {title.strip() for title in titles}
    among_candidates, hits = [], []
    for output, row in zip(outputs, dataset.select_columns(["candidates", "positive"]), strict=True):
        candidates = [_text(candidate) for candidate in row["candidates"]]  # one user at a time: may be the catalogue
        among_candidates.append(output in candidates)
        hits.append(output == candidates[row["positive"]])
    return GenerationResult(
        name,
        dataset["user"][:],
        outputs,
        np.array([output in catalogue for output in outputs]),
        np.array(among_candidates),
        np.array(hits),
    )


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokenize: Tokenize,
    questions: Dataset,
    longest: int,
    batch_size: int,
    bar: str | None,
) -> list[str]:
    sharded = is_sharded(model)
    model = extract_model_from_parallel(model)
    # The prompt as it is scored and trained on: a last token that would merge with a title's first is left out
    prompts = [tokenize(row["prompt"], row["candidates"])[0] for row in questions]
    limits = Limits.of(model)
    for user, prompt in zip(questions["user"], prompts, strict=True):
        limits.check_tokens(f"user {user!r}", prompt)
        limits.check_length(f"user {user!r}", len(prompt), longest)
    if not prompts:  # of several processes some may have no user
        return []
    stops = stop_tokens(model, tokenizer, questions[0]["prompt"])
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    outputs: dict[int, str] = {}
    with tqdm(total=len(prompts), desc=bar, disable=bar is None) as progress:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [prompts[row] for row in rows]
            texts = generate_greedily(model, tokenizer, batch, max_new_tokens=longest, stops=stops, sharded=sharded)
            outputs |= zip(rows, texts, strict=True)
            progress.update(len(rows))
    return [outputs[row] for row in range(len(prompts))]


def _longest_title(tokenize: Tokenize, question: dict[str, Any], titles: Collection[str]) -> int:
    """Return the number of tokens of the longest completion with its end: nothing longer can be a title."""
    conversational = not isinstance(question["prompt"], str)
    completions = [[{"role": "assistant", "content": title}] if conversational else title for title in titles]
    _, ids = tokenize(question["prompt"], completions)
    return max(map(len, ids))


def _text(completion: str | list[dict[str, str]]) -> str:
    return (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
