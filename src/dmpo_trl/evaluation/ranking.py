"""Candidate ranking: with a model, by popularity, at random; among sampled candidates or the whole catalogue."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..scoring import CompletionScores, check_score, stream_scores
from ..work import ResultParts, describe_scoring, on_main_process, over_processes
from .result import RankingResult


def rank_with_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    score: Literal["sum", "mean"],
    name: str,
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
) -> RankingResult:
    """Rank candidates by their log-prob after the prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        dataset: Columns of [`ranking_dataset`].
        score: See [`rank_by_log_prob`].
        name: Name of the result, also shown on the progress bar.
        tokens_per_batch: See [`score_completions`].
        special_tokens_in_text: See [`score_completions`].

    Returns:
        The ranking.

    Raises:
        ValueError: `score` is neither `"sum"` nor `"mean"`, or the candidates cannot be ranked (see
            [`RankingResult`]).

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"</s>": 0, "?": 1, "Alien": 2, "Aliens": 3, "Heidi": 4}, "?"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="?")
        >>> config = LlamaConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_attention_heads=1)
        >>> user = {"user": "u1", "items": ["2", "3"], "positive": 0, "prompt": "Alien"}
        >>> dataset = Dataset.from_list([{**user, "candidates": ["Aliens", "Heidi"]}])
        >>> result = rank_with_model(LlamaForCausalLM(config), tokenizer, dataset, score="sum", name="tiny")
        >>> result.items, result.scores[0].shape
        ([['2', '3']], (2,))
    """
    check_score(score)
    scored = score_candidates(
        model,
        tokenizer,
        dataset,
        tokens_per_batch=tokens_per_batch,
        special_tokens_in_text=special_tokens_in_text,
        progress=name,
    )
    return rank_by_log_prob(dataset, scored, score=score, name=name)


def score_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    tokens_per_batch: int = 4096,
    special_tokens_in_text: bool | None = None,
    progress: str | None = None,
    parts: ResultParts | None = None,
) -> list[CompletionScores]:
    """Compute the log-probs of all candidates once, to rank by them in several ways.

    Several processes (`accelerate launch`, `torchrun`) share the users, and each of them gets all scores; all of them
    must call this function. A sharded model (FSDP, ZeRO-3) scores all users in every process.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        dataset: Columns of [`ranking_dataset`].
        tokens_per_batch: See [`score_completions`].
        special_tokens_in_text: See [`score_completions`].
        progress: Label of a progress bar; None for no bar.
        parts: Keeps the scores in files while they are computed, and has those of an interrupted run.

    Returns:
        Sums and lengths, one entry per row of the dataset.

    Raises:
        ValueError: As in [`score_completions`], with the name of the user.

    Example:
        >>> scored = score_candidates(model, tokenizer, dataset)  # doctest: +SKIP
        >>> by_sum = rank_by_log_prob(dataset, scored, score="sum", name="sum")  # doctest: +SKIP
        >>> by_mean = rank_by_log_prob(dataset, scored, score="mean", name="mean")  # doctest: +SKIP
    """
    questions, users = dataset.select_columns(["prompt", "candidates"]), dataset["user"]

    def score(rows: Sequence[int]) -> list[CompletionScores]:
        examples = ((row["prompt"], row["candidates"]) for row in questions.select(rows))
        return list(
            stream_scores(
                model,
                tokenizer,
                examples,
                tokens_per_batch=tokens_per_batch,
                special_tokens_in_text=special_tokens_in_text,
                progress=None if parts else on_main_process(progress),
                total=len(rows),
                name=lambda index: f"user {users[rows[index]]!r}",
            )
        )

    if parts is None:
        return over_processes(score, range(len(dataset)), model)
    options = {"tokens_per_batch": tokens_per_batch, "special_tokens_in_text": special_tokens_in_text}
    return parts.over(
        lambda rows: over_processes(score, rows, model),
        questions,
        made_of=describe_scoring(model, tokenizer, **options),
        to_frame=lambda scored: pl.DataFrame(
            {"logps": [one.logps.tolist() for one in scored], "lengths": [one.lengths.tolist() for one in scored]}
        ),
        from_frame=lambda frame: [
            CompletionScores(logps.to_numpy(), lengths.to_numpy())
            for logps, lengths in zip(frame["logps"], frame["lengths"], strict=True)
        ],
        progress=on_main_process(progress),
    )


def rank_by_log_prob(
    dataset: Dataset, scored: Sequence[CompletionScores], *, score: Literal["sum", "mean"], name: str
) -> RankingResult:
    """Rank by the log-probs that [`score_candidates`] computed.

    Args:
        dataset: The dataset that was scored.
        scored: The scores of its rows.
        score: `"sum"` ranks by the log-prob of the whole completion, `"mean"` by its mean per token. The sum is the
            log-probability of the item itself and favours short titles, the mean does not; state which of the two a
            figure was made with.
        name: Name of the result.

    Returns:
        The ranking.

    Raises:
        ValueError: `score` is neither `"sum"` nor `"mean"`, or the candidates cannot be ranked (see
            [`RankingResult`]).

    Example:
        >>> dataset = Dataset.from_list([{"user": "u1", "items": ["a", "b"], "positive": 1}])
        >>> scored = [CompletionScores(logps=np.array([-3.0, -4.0]), lengths=np.array([1, 2]))]
        >>> rank_by_log_prob(dataset, scored, score="sum", name="sum").metrics(["hr@1"])
        {'hr@1': 0.0}
        >>> rank_by_log_prob(dataset, scored, score="mean", name="mean").metrics(["hr@1"])
        {'hr@1': 1.0}
    """
    check_score(score)
    return RankingResult.of(name, dataset, [one.by(score) for one in scored])


def rank_at_random(dataset: Dataset) -> RankingResult:
    """Rank at random: all candidates are tied, so that every metric is its exact expectation.

    Args:
        dataset: Columns of [`ranking_dataset`].

    Returns:
        The ranking.

    Example:
        >>> dataset = Dataset.from_list([{"user": "u1", "items": ["a", "b", "c", "d"], "positive": 1}])
        >>> rank_at_random(dataset).metrics(["hr@1", "auc"])
        {'hr@1': 0.25, 'auc': 0.5}
    """
    return RankingResult.of("random", dataset, [np.zeros(len(items)) for items in dataset["items"]])


def rank_by_popularity(
    dataset: Dataset, popularity: Mapping[str, float], *, name: str = "popularity"
) -> RankingResult:
    """Rank by popularity, the same for every user.

    Args:
        dataset: Columns of [`ranking_dataset`].
        popularity: Count by item; an item without one counts 0. Count other users' interactions: a user's own would
            include the held-out item.
        name: Name of the result.

    Returns:
        The ranking.

    Example:
        >>> dataset = Dataset.from_list([{"user": "u1", "items": ["a", "b", "c"], "positive": 1}])
        >>> rank_by_popularity(dataset, {"a": 5, "b": 7}).metrics(["hr@1"])
        {'hr@1': 1.0}
    """
    scores = [np.array([popularity.get(item, 0) for item in items], dtype=float) for items in dataset["items"]]
    return RankingResult.of(name, dataset, scores)


def full_catalogue(
    dataset: Dataset,
    titles: Mapping[str, str],
    template: PromptTemplate,
    *,
    seen: Mapping[str, Collection[str]] | None = None,
) -> Dataset:
    """Replace sampled candidates by every item that the user has not had.

    Every ranker takes the returned dataset in place of the sampled one. Metrics with sampled candidates and with the
    whole catalogue can order models differently (Krichene and Rendle, KDD 2020, "On Sampled Metrics for Item
    Recommendation"): report which of the two it was.

    Of a dataset that was read from files, the result lies in the cache of `datasets` on the disk and takes no memory
    beyond the rows that are read.

    Args:
        dataset: Columns of [`ranking_dataset`].
        titles: Titles of all items, by item.
        template: The template that the prompts were made with.
        seen: Items that each user has had, which are not candidates; the target is one in any case. By default those
            of the column `seen`, and of `history` (the last few of all) where there is no such column.

    Returns:
        The dataset with other `items`, `candidates` and `positive`.

    Raises:
        ValueError: A target has no title, or the prompts list candidates.

    Example:
        >>> from dmpo_trl.data import MOVIES
        >>> user = {"user": "u1", "history": ["1"], "items": ["2", "3"], "positive": 0, "prompt": "Alien. Next:"}
        >>> dataset = Dataset.from_list([{**user, "candidates": ["Aliens", "Heidi"]}])
        >>> titles = {"1": "Alien", "2": "Aliens", "3": "Heidi", "4": "Babe"}
        >>> full_catalogue(dataset, titles, MOVIES.plain())[0]["candidates"]
        ['Aliens', 'Heidi', 'Babe']
    """
    if template.candidates is not None:
        raise ValueError(
            "The template lists the candidates in the prompt, and a whole catalogue does not fit into it; use a "
            "template without them."
        )
    number = {item: place for place, item in enumerate(titles)}
    items = list(titles)
    completions = [template.completion(title) for title in titles.values()]

    def widen(row: dict[str, Any]) -> dict[str, Any]:
        target = row["items"][row["positive"]]
        if target not in number:
            raise ValueError(
                f"The target {target!r} of user {row['user']} is not in `titles`; give all items' titles."
            )
        had = [*row["history"], *row.get("seen", ())] if seen is None else seen.get(row["user"], ())
        left_out = [number[item] for item in set(had) - {target} if item in number]
        kept = np.delete(np.arange(len(number)), left_out)
        return {
            "items": [items[place] for place in kept],
            "positive": int(np.searchsorted(kept, number[target])),
            "candidates": [completions[place] for place in kept],
        }

    return dataset.map(widen, writer_batch_size=100)  # rows are thousands of candidates long
