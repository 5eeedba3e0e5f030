"""Ranks the candidates of each user with a model, and with what every model has to beat."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .result import RankingResult, interned

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import PromptTemplate
    from ..scoring import CompletionScores

SCORES: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")


def rank_with_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    score: Literal["sum", "mean"],
    name: str,
    tokens_per_batch: int = 4096,
) -> RankingResult:
    """Ranks candidates by their log-probability after the prompt.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        dataset: columns of [`ranking_dataset`].
        score: see [`rank_by_log_prob`].
        name: of the result, also shown at the progress bar.
        tokens_per_batch: as in [`score_completions`].
    """
    _check(score)
    scored = score_candidates(model, tokenizer, dataset, tokens_per_batch=tokens_per_batch, progress=name)
    return rank_by_log_prob(dataset, scored, score=score, name=name)


def score_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    tokens_per_batch: int = 4096,
    progress: str | None = None,
) -> list[CompletionScores]:
    """Log-probs of all candidates, for several ways to rank by them.

    Several processes (`accelerate launch`, `torchrun`) share the users out, and every one gets all scores; all must
    call this function. A sharded model (FSDP, ZeRO-3) scores all users in every process.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        dataset: columns of [`ranking_dataset`].
        tokens_per_batch: as in [`score_completions`].
        progress: label of a progress bar; None for no bar.

    Returns:
        Sums and lengths, one entry a row of the dataset.
    """
    # Imported here because this module's other rankers do without torch.
    from ..scoring import stream_scores
    from ._processes import on_main_process, over_processes

    questions = dataset.select_columns(["prompt", "candidates"])

    def score(rows: Sequence[int]) -> list[CompletionScores]:
        examples = ((row["prompt"], row["candidates"]) for row in questions.select(rows))
        return list(
            stream_scores(
                model,
                tokenizer,
                examples,
                tokens_per_batch=tokens_per_batch,
                progress=on_main_process(progress),
                total=len(rows),
            )
        )

    return over_processes(score, len(dataset), model)


def rank_by_log_prob(
    dataset: Dataset, scored: Sequence[CompletionScores], *, score: Literal["sum", "mean"], name: str
) -> RankingResult:
    """Ranks by what [`score_candidates`] found.

    Args:
        dataset: what was scored.
        scored: the scores of its rows.
        score: `"sum"` ranks by the log-probability of the whole completion, `"mean"` by that of its average token. The
            sum is the probability of the item itself and favours short titles, the mean does not; state which one a
            figure was made with.
        name: of the result.

    Raises:
        ValueError: for another `score`.
    """
    _check(score)
    return _result(name, dataset, [one.logps / one.lengths if score == "mean" else one.logps for one in scored])


def rank_at_random(dataset: Dataset) -> RankingResult:
    """Choosing blindly: all candidates are tied, so every metric is its exact expectation."""
    return _result("random", dataset, [np.zeros(len(items)) for items in dataset["items"]])


def rank_by_popularity(dataset: Dataset, popularity: Mapping[str, float]) -> RankingResult:
    """Ranks by how often an item was had, without a look at the user.

    Args:
        dataset: columns of [`ranking_dataset`].
        popularity: count by item; what is not there counts 0. Count other users' interactions: with a user's own,
            the held-out item would be counted too.
    """
    scores = [np.array([popularity.get(item, 0) for item in items], dtype=float) for items in dataset["items"]]
    return _result("popularity", dataset, scores)


def full_catalogue(
    dataset: Dataset,
    titles: Mapping[str, str],
    template: PromptTemplate,
    *,
    seen: Mapping[str, Collection[str]] | None = None,
) -> Dataset:
    """The same questions with every item that the user has not had as a candidate, instead of sampled ones.

    Every ranker takes the outcome in the place of the sampled dataset. Metrics with sampled candidates and with the
    whole catalogue can order models differently (Krichene and Rendle, KDD 2020, "On Sampled Metrics for Item
    Recommendation"): report which of the two it was.

    Args:
        dataset: columns of [`ranking_dataset`].
        titles: of all items, by item.
        template: the one that the prompts were made with.
        seen: items that each user has had, not to be recommended again; the target stays a candidate in any case. By
            default those of the column `seen`, and of `history` (the last few of all) where there is no such column.

    Raises:
        ValueError: where a target has no title, or the prompts list candidates.
    """
    if template.candidates is not None:
        raise ValueError("The template lists the candidates in the prompt, which a whole catalogue does not fit into")
    completions = {item: template.completion(title) for item, title in titles.items()}

    def widen(row: dict[str, Any]) -> dict[str, Any]:
        target = row["items"][row["positive"]]
        if target not in completions:
            raise ValueError(f"The target {target!r} of user {row['user']} is not in `titles`")
        own = [*row["history"], *row.get("seen", ())] if seen is None else seen.get(row["user"], ())
        had = set(own) - {target}
        items = [item for item in completions if item not in had]
        return {
            "items": items,
            "positive": items.index(target),
            "candidates": [completions[item] for item in items],
        }

    return dataset.map(widen, writer_batch_size=100)  # rows are thousands of candidates long


def _check(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score must be 'sum' or 'mean', not {score!r}")


def _result(name: str, dataset: Dataset, scores: list[np.ndarray]) -> RankingResult:
    return RankingResult(name, dataset["user"][:], scores, dataset["positive"][:], interned(dataset["items"]))
