"""Ranking without a history: how unlikely a model finds each title before it knows anything of the user."""

from __future__ import annotations

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


def rank_without_history(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    template: PromptTemplate,
    *,
    name: str = "no_history",
    **scoring: Any,
) -> RankingResult:
    """Rank candidates by `-log p(title | no history)`: long and odd titles first, the same for every user.

    Alone that is of no use. With [`fuse`] it takes out of a model's ranking what the model would have said of anybody:
    `log p(title | history) - a log p(title | no history)`, with a = 1 pointwise mutual information (Li et al. 2016,
    arXiv 1510.03055, equation 9; Holtzman et al. 2021, arXiv 2104.08315). A weight w of `fuse` is a = w times the
    quotient of their standard deviations over a user's candidates. Where titles are of very different lengths, what is
    said of anybody is most of the sum of log-probs; where what is popular is also what is chosen, to take it out does
    harm. [`choose_weight`] finds out on validation users, among `NO_HISTORY_WEIGHTS`. Users whose prompt has no
    history have scores of 0: the model decides alone.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        dataset: Columns of [`ranking_dataset`].
        template: The one that its prompts were made with.
        name: Name of the result.
        **scoring: Further options of [`score_candidates`].

    Returns:
        The ranking.

    Raises:
        ValueError: The template lists the candidates, so that its prompt without a history is another one for every
            user, or it makes messages and the prompts are text, or the other way round; or the candidates cannot be
            ranked (see [`RankingResult`]).

    Example:
        >>> by_model = rank_with_model(model, tokenizer, users, score="sum", name="dmpo")  # doctest: +SKIP
        >>> unlikely = rank_without_history(model, tokenizer, users, template)  # doctest: +SKIP
        >>> fuse(by_model, unlikely, 1.0).metrics(["ndcg@5"])  # doctest: +SKIP
        {'ndcg@5': 0.29}
    """
    check_lists_nothing(template)
    nothing = template.prompt([])
    if len(dataset) and type(nothing) is not type(dataset[0]["prompt"]):
        raise ValueError(
            "One of prompts and template has messages, the other plain text: give the template that the prompts were "
            "made with (`template.plain()` for text)."
        )
    completions = {
        item: completion
        for items, candidates in zip(dataset["items"], dataset["candidates"], strict=True)
        for item, completion in zip(items, candidates, strict=True)
    }
    titles = list(completions.values())
    parts = [titles[start : start + _TITLES_PER_ROW] for start in range(0, len(titles), _TITLES_PER_ROW)]
    questions = Dataset.from_dict(
        {
            "user": [f"nobody, titles from {_TITLES_PER_ROW * number}" for number in range(len(parts))],
            "prompt": [nothing] * len(parts),
            "candidates": parts,
        }
    )
    scored = score_candidates(model, tokenizer, questions, **scoring)
    logps = (logp for scores in scored for logp in scores.logps)
    unlikely = {item: -logp for item, logp in zip(completions, logps, strict=True)}
    scores = [
        np.zeros(len(items)) if prompt == nothing else np.array([unlikely[item] for item in items])
        for items, prompt in zip(dataset["items"], dataset["prompt"], strict=True)
    ]
    return RankingResult.of(name, dataset, scores)


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
