"""What a model says of titles without a history: as a ranker, and as the reference of a preference stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..preprocessing.format import REFERENCE_COLUMNS, RowError, holds_several, read_row
from .ranking import score_candidates
from .result import RankingResult

NO_HISTORY_WEIGHTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Weights of `fuse` to choose among: at 1 what is taken out varies as much as what the model says of a user."""

_TITLES_PER_ROW = 100


class NoHistoryRanker:
    """Ranks by `-log p(title | no history)`: long and odd titles first, the same for every user.

    Alone that is of no use. With [`fuse`] it takes out of a model's ranking what the model would say without knowing
    the user: `log p(title | history) - a log p(title | no history)`, with a = 1 pointwise mutual information (Li et
    al. 2016, arXiv 1510.03055, equation 9; Holtzman et al. 2021, arXiv 2104.08315). A weight w of `fuse` is a = w
    times the quotient of their standard deviations over a user's candidates. Where titles are of very different
    lengths, it is most of the sum of log-probs; where what is popular is also what is chosen, to take it out does
    harm. [`choose_weight`] finds out on validation users, among `NO_HISTORY_WEIGHTS`.

    An item is scored once and its score is kept: make the ranker anew when the weights or a title change.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        template: The one that the prompts of the users were made with.
        **scoring: Further options of [`score_candidates`].

    Raises:
        ValueError: The template lists the candidates, so that its prompt without a history is another one for every
            user.

    Example:
        >>> by_model = rank_with_model(model, tokenizer, users, score="sum", name="dmpo")  # doctest: +SKIP
        >>> unlikely = NoHistoryRanker(model, tokenizer, template).rank(users)  # doctest: +SKIP
        >>> fuse(by_model, unlikely, 1.0).metrics(["ndcg@5"])  # doctest: +SKIP
        {'ndcg@5': 0.29}
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        **scoring: Any,
    ) -> None:
        check_lists_nothing(template)
        self._model, self._tokenizer, self._scoring = model, tokenizer, scoring
        self._prompt = template.prompt([])
        self._known: dict[str, float] = {}

    def rank(self, dataset: Dataset, *, name: str = "no_history") -> RankingResult:
        """Rank the candidates of users.

        Users whose prompt has no history have scores of 0, so that in a fusion the model decides alone.

        Args:
            dataset: Columns of [`ranking_dataset`].
            name: Name of the result.

        Raises:
            ValueError: The template makes messages and the prompts are text, or the other way round; or the candidates
                cannot be ranked (see [`RankingResult`]).
        """
        _check_kind(dataset, self._prompt)
        candidates = zip(dataset["items"], dataset["candidates"], strict=True)
        self._learn({item: title for own in candidates for item, title in zip(*own, strict=True)})
        scores = [
            np.zeros(len(items)) if prompt == self._prompt else np.array([self._known[item] for item in items])
            for items, prompt in zip(dataset["items"], dataset["prompt"], strict=True)
        ]
        return RankingResult.of(name, dataset, scores)

    def _learn(self, completions: Mapping[str, Any]) -> None:
        """Score those items that have no score yet."""
        if not (unknown := [item for item in completions if item not in self._known]):
            return
        found = _log_probs(
            self._model, self._tokenizer, self._prompt, [completions[item] for item in unknown], **self._scoring
        )
        self._known.update((item, -logp) for item, logp in zip(unknown, found, strict=True))


def reference_without_history(
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    **scoring: Any,
) -> Dataset:
    """Add reference log-probs to preference data: what a model says of each title without any history.

    A loss with a reference then compares `log pi(title | history) - log p(title | no history)` of the chosen and the
    rejected titles, pointwise mutual information: that by which [`NoHistoryRanker`] and [`fuse`] rank, and not the
    log-prob of a title, most of which is its length. Train the model that `model` is, with
    `precompute_ref_log_probs=True`, so that no reference is loaded, and a `beta` below that of a reference with the
    history: the differences do not begin at 0.

    Args:
        dataset: Columns `prompt`, `chosen` (a completion or a list of them) and `rejected`.
        model: A causal language model, above all the one that training begins with.
        tokenizer: Its tokenizer.
        template: The one that the prompts were made with.
        **scoring: Further options of [`score_candidates`].

    Returns:
        The dataset with the columns `ref_chosen_logps` and `ref_rejected_logps`.

    Raises:
        ValueError: The template lists the candidates, or its prompts are of another kind than those of the rows; a row
            is faulty; or the dataset has the columns already.

    Example:
        >>> rows = reference_without_history(preference, model, tokenizer, MOVIES)  # doctest: +SKIP
        >>> args = DMPOConfig("out", loss_type=["softmax"], beta=0.2, precompute_ref_log_probs=True)  # doctest: +SKIP
        >>> DMPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer).train()  # doctest: +SKIP
    """
    check_lists_nothing(template)
    if has := set(REFERENCE_COLUMNS) & set(dataset.column_names):
        raise ValueError(f"The dataset has the column {min(has)} already: remove it, or train with it as it is.")
    nothing = template.prompt([])
    _check_kind(dataset, nothing)
    rows = [read_row(row, partial(RowError, "preference", number))[1:] for number, row in enumerate(dataset)]
    titles = {json.dumps(one): one for chosen, rejected in rows for one in (*chosen, *rejected)}
    found = _log_probs(model, tokenizer, nothing, list(titles.values()), **scoring)
    logps = dict(zip(titles, found, strict=True))
    chosen, rejected = ([[logps[json.dumps(one)] for one in row[side]] for row in rows] for side in (0, 1))
    several = len(dataset) > 0 and holds_several(dataset[0]["chosen"])
    of_chosen, of_rejected = REFERENCE_COLUMNS
    dataset = dataset.add_column(of_chosen, chosen if several else [logp for (logp,) in chosen])
    return dataset.add_column(of_rejected, rejected)


def _log_probs(model: Any, tokenizer: Any, prompt: Any, completions: Sequence[Any], **scoring: Any) -> list[float]:
    """Return the log-prob of each completion after one prompt."""
    rows = range(0, len(completions), _TITLES_PER_ROW)
    parts = [completions[start : start + _TITLES_PER_ROW] for start in rows]
    users = [f"nobody, titles from {start}" for start in rows]
    questions = Dataset.from_dict({"user": users, "prompt": [prompt] * len(parts), "candidates": parts})
    return [float(logp) for one in score_candidates(model, tokenizer, questions, **scoring) for logp in one.logps]


def _check_kind(dataset: Dataset, nothing: Any) -> None:
    if len(dataset) and type(nothing) is not type(dataset[0]["prompt"]):
        raise ValueError(
            "One of prompts and template has messages, the other plain text: give the template that the prompts were "
            "made with (`template.plain()` for text)."
        )


def check_lists_nothing(template: PromptTemplate) -> None:
    """Refuse a template whose prompt without a history is not the same for all users.

    Raises:
        ValueError: It lists the candidates.

    Example:
        >>> check_lists_nothing(PromptTemplate("A viewer liked:", "Next:"))
    """
    if template.candidates is not None:
        raise ValueError(
            "no_history: the template lists the candidates, so that its prompt without a history is another one for "
            "every user. Prepare the data with a template that does not."
        )
