"""Free generation: how many of the texts that a model generates are items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .._common_prefix import common_prefix_length
from ..modeling.loading import evaluation_mode, plain_generation
from ..preprocessing.tokenize import tokenize_completions
from ._processes import is_sharded, on_main_process, over_processes
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

    Returns:
        The texts, and which of them are items.

    Raises:
        ValueError: There are no users, or no titles, or `batch_size` is below 1.

    Example:
        >>> result = generate_items(model, tokenizer, users, ["Alien", "Heidi"], name="model")  # doctest: +SKIP
        >>> result.metrics()["valid"]  # doctest: +SKIP
    """
    if len(dataset) == 0 or len(titles) == 0:
        raise ValueError(f"There are {len(dataset)} users and {len(titles)} titles; generation needs some of both.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    questions = dataset.select_columns(["prompt", "candidates"])
    tokenize = partial(
        tokenize_completions,
        tokenizer,
        eos_token=tokenizer.eos_token,
        special_tokens_in_text=special_tokens_in_text,
    )
    longest = _longest_title(tokenize, questions[0], titles)

    def generate(rows: Sequence[int]) -> list[str]:
        bar = on_main_process(name)
        return _generate(model, tokenizer, tokenize, questions.select(rows), longest, batch_size, bar)

    outputs = over_processes(generate, len(dataset), model)
    catalogue = {title.strip() for title in titles}
    among_candidates, hits = [], []
    for output, row in zip(outputs, dataset.select_columns(["candidates", "positive"]), strict=True):
        candidates = [_text(candidate) for candidate in row["candidates"]]  # of one user: they may be the catalogue
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
    device = model.get_input_embeddings().weight.device
    # The prompt as it is scored and trained on: a last token that would merge with a title's first is left out
    prompts = [tokenize(row["prompt"], row["candidates"])[0] for row in questions]
    stops = _stops(model, tokenizer, tokenize, questions[0]["prompt"])
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=False, num_beams=1, eos_token_id=sorted(stops), pad_token_id=padding
    )
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    outputs: dict[int, str] = {}
    with (
        evaluation_mode(model),
        plain_generation(model),
        torch.no_grad(),
        tqdm(total=len(prompts), desc=bar, disable=bar is None) as progress,
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = len(prompts[rows[0]])
            room = [length - len(prompts[row]) for row in rows]  # padded on the left, so that all end together
            ids = torch.tensor([[padding] * gap + prompts[row] for gap, row in zip(room, rows, strict=True)])
            mask = torch.tensor([[0] * gap + [1] * (length - gap) for gap in room])
            generated = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, synced_gpus=sharded
            )
            answers = [
                list(takewhile(lambda token: token not in stops, row)) for row in generated[:, length:].tolist()
            ]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            outputs |= zip(rows, (text.strip() for text in texts), strict=True)
            progress.update(len(rows))
    return [outputs[row] for row in range(len(prompts))]


def _stops(model: Any, tokenizer: PreTrainedTokenizerBase, tokenize: Tokenize, prompt: Any) -> set[int]:
    """Return the tokens that end an answer: those that transformers knows, and what ends a completion in training.

    A chat template may end a turn with another token than the tokenizer's end of sequence.
    """
    stops = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *([] if stops is None else [stops] if isinstance(stops, int) else stops)} - {None}
    texts = ["A", "7"]  # of which nothing but the end is the same
    completions = texts if isinstance(prompt, str) else [[{"role": "assistant", "content": text}] for text in texts]
    _, (one, other) = tokenize(prompt, completions)
    length = common_prefix_length(one[::-1], other[::-1])
    end = [token for token in one[len(one) - length :] if token in tokenizer.added_tokens_decoder]
    return stops | set(end[:1])


def _longest_title(tokenize: Tokenize, question: dict[str, Any], titles: Collection[str]) -> int:
    """Return the number of tokens of the longest completion with its end: nothing longer can be a title."""
    conversational = not isinstance(question["prompt"], str)
    completions = [[{"role": "assistant", "content": title}] if conversational else title for title in titles]
    _, ids = tokenize(question["prompt"], completions)
    return max(map(len, ids))


def _text(completion: str | list[dict[str, str]]) -> str:
    return (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
