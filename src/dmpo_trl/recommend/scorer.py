"""Scorer: the model's scores of a catalogue's titles after histories, for all users in as few forwards as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..modeling.limits import Limits
from ..preprocessing.tokenize import tokenize_completions
from ..scoring import score_completions
from .catalogue import Catalogue
from .decoding.beam_search import NonFiniteScoresError


@dataclass(frozen=True)
class Scorer:
    """A model, its tokenizer, a catalogue and a template, put together to score items.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        catalogue: The items.
        template: Makes the prompts, as in training.
        score: `"sum"` of a title's log-probs, or their `"mean"` per token.

    Example:
        >>> scorer = Scorer(model, tokenizer, catalogue, template, "sum")  # doctest: +SKIP
        >>> scorer.after([[0, 7]], [[1, 2, 3]])[0].shape  # doctest: +SKIP
        (3,)
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    catalogue: Catalogue
    template: PromptTemplate
    score: Literal["sum", "mean"]

    def after(self, histories: Sequence[Sequence[int]], items: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Score each user's items after the history, the beginnings that their titles share computed once.

        Args:
            histories: Rows of the catalogue from old to new, one list per user.
            items: Rows of the items to score, one list per user; it may be empty.

        Returns:
            The scores, (items,) per user.

        Raises:
            NonFiniteScoresError: A log-prob is not finite.
            ValueError: The model has no embedding for a token or a prompt's length.
        """
        titles = [self.titles(own) for own in items]
        asked = [user for user, own in enumerate(titles) if own]
        prompts = [self._prompt(histories[user], titles[user]) for user in asked]
        scores = [np.zeros(0)] * len(titles)
        for user, own in zip(asked, self.of(prompts, [titles[user] for user in asked]), strict=True):
            scores[user] = own
        return scores

    def check(self, history: Sequence[int], items: Sequence[int]) -> None:
        """Refuse what `after` would, before the work.

        Args:
            history: Rows of the catalogue from old to new.
            items: Rows of the items to score; it may be empty.

        Raises:
            ValueError: The model has no embedding for a token or the prompt's length.
        """
        if titles := self.titles(items):
            completions = [self.template.completion(title) for title in titles]
            tokens = tokenize_completions(
                self.tokenizer,
                self._prompt(history, titles),
                completions,
                special_tokens_in_text=False,
            )
            Limits.of(self.model).check("history", *tokens)

    def of(self, prompts: Sequence[Any], titles: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Score titles after prompts.

        Args:
            prompts: What the template makes.
            titles: Titles to score, at least one per prompt.

        Returns:
            The scores, (titles,) per prompt.

        Raises:
            ValueError: As in `after`.
        """
        completions = [[self.template.completion(title) for title in own] for own in titles]
        scored = score_completions(self.model, self.tokenizer, prompts, completions, special_tokens_in_text=False)
        if not all(np.isfinite(one.logps).all() for one in scored):
            raise NonFiniteScoresError
        return [one.by(self.score) for one in scored]

    def titles(self, rows: Sequence[int]) -> list[str]:
        """Return the titles of items of the catalogue."""
        return [self.catalogue.titles[row] for row in rows]

    def _prompt(self, history: Sequence[int], titles: Sequence[str]) -> Any:
        """Return the prompt before some titles, which a template may list in it."""
        return self.template.prompt(self.titles(history), None if self.template.candidates is None else titles)
