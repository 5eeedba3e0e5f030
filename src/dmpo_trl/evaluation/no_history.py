"""Ranking without a history: how unlikely a model finds each title before it knows anything of the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
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
        if len(dataset) and type(self._prompt) is not type(dataset[0]["prompt"]):
            raise ValueError(
                "One of prompts and template has messages, the other plain text: give the template that the prompts "
                "were made with (`template.plain()` for text)."
            )
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
        parts = [unknown[start : start + _TITLES_PER_ROW] for start in range(0, len(unknown), _TITLES_PER_ROW)]
        questions = Dataset.from_dict(
            {
                "user": [f"nobody, titles from {_TITLES_PER_ROW * number}" for number in range(len(parts))],
                "prompt": [self._prompt] * len(parts),
                "candidates": [[completions[item] for item in own] for own in parts],
            }
        )
        found = score_candidates(self._model, self._tokenizer, questions, **self._scoring)
        for own, scored in zip(parts, found, strict=True):
            self._known.update(zip(own, (-scored.logps).tolist(), strict=True))


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
