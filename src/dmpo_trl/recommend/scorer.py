"""Scorer: the model's scores of a catalogue's titles after histories, for all users in as few forwards as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..scoring import score_completions
from .catalogue import Catalogue
from .decoding.beam_search import NAN


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
            ValueError: A log-prob is not finite, or the model has no embedding for a token or a prompt's length.
        """
        titles = [self.titles(own) for own in items]
        asked = [user for user, own in enumerate(titles) if own]
        shown = self.template.candidates is not None  # in the prompt
        prompts = [
            self.template.prompt(self.titles(histories[user]), titles[user] if shown else None) for user in asked
        ]
        scores = [np.zeros(0)] * len(titles)
        for user, own in zip(asked, self.of(prompts, [titles[user] for user in asked]), strict=True):
            scores[user] = own
        return scores

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
            raise ValueError(NAN)
        return [one.by(self.score) for one in scored]

    def titles(self, rows: Sequence[int]) -> list[str]:
        """Return the titles of items of the catalogue."""
        return [self.catalogue.titles[row] for row in rows]
