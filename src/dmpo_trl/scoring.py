"""Scoring: log-probs of completions given their prompts, in as few forwards as their number allows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ._common_prefix import common_prefix_length
from .batching.collator import lay_out
from .modeling.attention import attention_balance
from .modeling.limits import Limits
from .modeling.loading import base_model_of, evaluation_mode
from .modeling.probe import prepare_for_scoring
from .preprocessing.ties import Pair, pairs_of_equal_tokens, warn_of_equal_tokens
from .preprocessing.tokenize import tokenize_completions

Text = str | list[dict[str, Any]]
Example = tuple[list[int], list[list[int]]]  # a prompt and its completions

SCORES: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")
"""What completions can be ranked by: their log-prob, or its mean per token."""

# Prompts are tokenised and sorted by length a window at a time, a window about so many batches
_WINDOW_BATCHES = 32


@dataclass(frozen=True)
class CompletionScores:
    """Scores of the completions of one prompt.

    Attributes:
        logps: Summed log-prob of each completion given the prompt, in nats, (N,).
        lengths: Its number of tokens that were scored, (N,): all but the first after an empty prompt, which nothing
            predicts.

    Example:
        >>> scores = CompletionScores(logps=np.array([-6.0, -4.0]), lengths=np.array([3, 1]))
        >>> scores.by("sum").tolist(), scores.by("mean").tolist()
        ([-6.0, -4.0], [-2.0, -4.0])
    """

    logps: np.ndarray
    lengths: np.ndarray

    def by(self, score: Literal["sum", "mean"]) -> np.ndarray:
        """Return the log-prob of each completion, or its mean per token, (N,)."""
        return self.logps / self.lengths if score == "mean" else self.logps


def score_completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    completions: Sequence[Sequence[Text]],
    *,
    prefix_sharing: str | bool = "auto",
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
    progress: str | None = None,
) -> list[CompletionScores]:
    """Score completions by their log-probs given the prompts, each computed once where the model allows it.

    Args:
        model: A causal language model of transformers, a `PeftModel` around one, or what accelerate wraps around it.
        tokenizer: Its tokenizer.
        prompts: Texts, or lists of messages.
        completions: For each prompt, any number of completions of the same kind. Texts get the end-of-sequence token
            appended, as in training.
        prefix_sharing: See `DMPOConfig.prefix_sharing`.
        tokens_per_batch: Bound on the tokens of a forward, padding included; at least 1. The completions of one prompt
            are spread over several rows where they are too many for one; only a single completion that with its prompt
            is longer than the bound exceeds it.
        special_tokens_in_text: See `DMPOConfig`; as in training.
        progress: Label of a progress bar; None for no bar.

    Returns:
        The scores, in the order of `prompts`.

    Raises:
        ValueError: The numbers of prompts and of lists of completions differ, a list is empty, a completion has no
            token to score, a prompt has a token or a length that the model has no embedding for, `tokens_per_batch` is
            below 1, or `prefix_sharing=True` and the model cannot.

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")  # doctest: +SKIP
        >>> tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B")  # doctest: +SKIP
        >>> score_completions(model, tokenizer, ["Alien, then"], [[" Aliens", " Babe"]])[0].logps  # doctest: +SKIP
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts, but {len(completions)} lists of completions: give one list per prompt."
        )
    for index, options in enumerate(completions):  # before the work, not in the midst of it
        _refuse_empty(f"prompt {index}", options)
    return list(
        stream_scores(
            model,
            tokenizer,
            zip(prompts, completions, strict=True),
            prefix_sharing=prefix_sharing,
            tokens_per_batch=tokens_per_batch,
            special_tokens_in_text=special_tokens_in_text,
            progress=progress,
            total=len(prompts),
        )
    )


def stream_scores(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[tuple[Text, Sequence[Text]]],
    *,
    prefix_sharing: str | bool = "auto",
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
    progress: str | None = None,
    total: int | None = None,
    name: Callable[[int], str] = "prompt {}".format,
) -> Iterator[CompletionScores]:
    """Score one prompt after the other, for more of them than memory holds.

    Args:
        model: As in `score_completions`.
        tokenizer: As in `score_completions`.
        examples: Pairs of a prompt and its completions, taken up as scoring proceeds.
        prefix_sharing: As in `score_completions`.
        tokens_per_batch: As in `score_completions`.
        special_tokens_in_text: As in `score_completions`.
        progress: As in `score_completions`.
        total: Number of examples, for the progress bar.
        name: Returns what messages call the example of a number, from 0.

    Yields:
        The scores, in the order of `examples`.

    Raises:
        ValueError: As in `score_completions`.
    """
    check_tokens_per_batch(tokens_per_batch)
    if isinstance(model, DistributedDataParallel):
        # Its forward synchronises buffers with the other processes, which may score other numbers of batches
        model = model.module
    base_model, limits = base_model_of(model), Limits.of(model)
    share = prepare_for_scoring(model, base_model, prefix_sharing)
    scorer = _Scorer(
        model=model,
        device=base_model.get_input_embeddings().weight.device,
        share=share,
        tokens_per_batch=tokens_per_batch,
        pad_token_id=limits.padding(tokenizer),
        attention_balance=attention_balance(base_model.config),
    )
    window: list[Example] = []
    tokens = 0
    ties: dict[Pair, None] = {}  # in order
    with tqdm(total=total, desc=progress, disable=progress is None) as bar:
        for index, (prompt, options) in enumerate(examples):
            _refuse_empty(name(index), options)
            example = tokenize_completions(
                tokenizer,
                prompt,
                options,
                special_tokens_in_text=special_tokens_in_text,
            )
            if (shortest := min(lengths := _scored_lengths(*example))) < 1:
                raise ValueError(
                    f"{name(index)}: completion {lengths.index(shortest)} has no token that a token before it "
                    "predicts: give it text, or the prompt."
                )
            limits.check(name(index), *example)
            ties |= dict.fromkeys(pairs_of_equal_tokens(options, example[1]))
            window.append(example)
            tokens += len(example[0]) * (1 if share else len(options)) + sum(map(len, example[1]))
            if tokens > _WINDOW_BATCHES * tokens_per_batch:
                yield from scorer.score(window, bar)
                window, tokens = [], 0
        yield from scorer.score(window, bar)
    warn_of_equal_tokens(ties)


def check_score(score: str) -> None:
    """Check the kind of score to rank by.

    Raises:
        ValueError: It is neither `"sum"` nor `"mean"`.

    Example:
        >>> check_score("median")
        Traceback (most recent call last):
        ...
        ValueError: score must be 'sum' or 'mean', not 'median'.
    """
    if score not in SCORES:
        raise ValueError(f"score must be 'sum' or 'mean', not {score!r}.")


def check_tokens_per_batch(tokens_per_batch: int) -> None:
    """Check the bound on the tokens of a forward.

    Args:
        tokens_per_batch: See [`score_completions`].

    Raises:
        ValueError: It is below 1.

    Example:
        >>> check_tokens_per_batch(0)
        Traceback (most recent call last):
        ...
        ValueError: `tokens_per_batch` must be at least 1, got 0.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"`tokens_per_batch` must be at least 1, got {tokens_per_batch}.")


def _scored_lengths(prompt: list[int], options: list[list[int]]) -> list[int]:
    """Return the number of tokens of each completion that have a predecessor."""
    return [len(option) - (not prompt) for option in options]


def _refuse_empty(name: str, options: Sequence[Text]) -> None:
    if len(options) == 0:
        raise ValueError(f"{name}: there are no completions to score; leave it out, or give it some.")


@dataclass(frozen=True)
class _Piece:
    """Completions of one prompt that are computed together: `rows` rows of at most `length` tokens."""

    example: int
    options: list[int]
    rows: int
    length: int


@dataclass(frozen=True)
class _Scorer:
    model: Any
    device: torch.device
    share: bool
    tokens_per_batch: int
    pad_token_id: int
    attention_balance: float

    def score(self, examples: list[Example], bar: tqdm) -> list[CompletionScores]:
        logps = [np.empty(len(options)) for _, options in examples]
        left = [len(options) for _, options in examples]
        cut = self._cut_for_trie if self.share else self._cut_for_copies
        pieces = [piece for index, example in enumerate(examples) for piece in cut(index, *example)]
        # No mode or gradient setting outlives this call: the caller may do other things between two windows
        with evaluation_mode(self.model), torch.no_grad():
            for batch in self._batches(pieces):
                for piece, values in self._score_batch(batch, examples):
                    logps[piece.example][piece.options] = values
                    left[piece.example] -= len(piece.options)
                    bar.update(int(left[piece.example] == 0))
        return [
            CompletionScores(own, np.array(_scored_lengths(prompt, options)))
            for own, (prompt, options) in zip(logps, examples, strict=True)
        ]

    def _cut_for_trie(self, example: int, prompt: list[int], options: list[list[int]]) -> Iterator[_Piece]:
        """Cut a long list into rows, the completions that begin alike into the same one.

        A row of a prompt of P tokens and K of completions costs `P + K + (P + K)**2 / balance` (see `plan_rows`), and
        scores K tokens: the cost per token is least at `K = sqrt(P * (P + balance))`.
        """
        best = len(prompt) + sqrt(len(prompt) * (len(prompt) + self.attention_balance))
        room = min(self.tokens_per_batch, max(best, 1))
        members: list[int] = []
        length = len(prompt)
        for option in sorted(range(len(options)), key=lambda option: options[option]):
            nodes = options[option][:-1]
            shared = common_prefix_length(options[members[-1]][:-1], nodes) if members else 0
            if members and length + len(nodes) - shared > room:
                yield _Piece(example, members, 1, length)
                members, length, shared = [], len(prompt), 0
            members.append(option)
            length += len(nodes) - shared
        yield _Piece(example, members, 1, length)

    def _cut_for_copies(self, example: int, prompt: list[int], options: list[list[int]]) -> Iterator[_Piece]:
        """Cut a list into as many rows as fit into a forward, completions of similar length together."""
        order = sorted(range(len(options)), key=lambda option: -len(options[option]))
        start = 0
        while start < len(order):
            length = max(len(prompt) + len(options[order[start]]) - 1, 1)
            members = order[start : start + max(self.tokens_per_batch // length, 1)]
            yield _Piece(example, members, len(members), length)
            start += len(members)

    def _batches(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        """Yield pieces of similar length, as many as the bound allows when all rows are padded to the longest."""
        batch: list[_Piece] = []
        rows = 0
        for piece in sorted(pieces, key=lambda piece: -piece.length):
            if batch and (rows + piece.rows) * batch[0].length > self.tokens_per_batch:
                yield batch
                batch, rows = [], 0
            batch.append(piece)
            rows += piece.rows
        if batch:
            yield batch

    def _score_batch(self, pieces: list[_Piece], examples: list[Example]) -> Iterator[tuple[_Piece, np.ndarray]]:
        batch = lay_out(
            [examples[piece.example][0] for piece in pieces],
            [[examples[piece.example][1][option] for option in piece.options] for piece in pieces],
            prefix_sharing=self.share,
            pad_token_id=self.pad_token_id,
            attention_balance=self.attention_balance,
        )
        if batch["input_ids"].numel() > self.tokens_per_batch and len(pieces) > 1:
            # Prompts that resemble each other were joined in a row so long that padding to it passes the bound
            for half in (pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]):
                yield from self._score_batch(half, examples)
            return
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        pairs, owners = batch.pop("token_pairs"), batch.pop("token_completions")
        token_logps = self.model(**batch, use_cache=False).log_probs[pairs].double()
        counts = [len(piece.options) for piece in pieces]
        logps = token_logps.new_zeros(sum(counts)).index_add(0, owners, token_logps).cpu().numpy()
        yield from zip(pieces, np.split(logps, np.cumsum(counts)[:-1]), strict=True)
