"""A language model, a catalogue and a prompt template: what recommends."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..data.prompts import PromptTemplate
from ..modeling.loading import evaluation_mode, hub_options, load_model_and_tokenizer
from ..scoring import score_completions
from .batch import UserHistory, write_recommendations
from .catalogue import Catalogue, PromptTries
from .decoding.beam_search import Search, beam_search, exact_search

if TYPE_CHECKING:
    from .explanation import Explanation

logger = logging.getLogger(__name__)

_SETTINGS, _ITEMS = "recommender.json", "items.parquet"


@dataclass(frozen=True)
class Recommendation:
    """A recommended item.

    Attributes:
        item: Its id.
        title: Its title.
        score: Log-prob of the title given the prompt, in nats, or that of its average token; the higher the better.
    """

    item: str
    title: str
    score: float


class Recommender:
    """Recommends items of a catalogue with a language model.

    Histories and candidates are given as item ids; an exact title does as well. Anything else is a `ValueError` that
    names it and the closest titles.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        items: The catalogue: columns `item` and `title`. Items may share a title; the model cannot tell them apart,
            so they have the same score and come out together.
        template: Makes the prompts, as in training.
        score: `"sum"` ranks by the log-prob of the whole title, `"mean"` by that of its average token. It applies to
            `rank` and `explain`; `recommend` is always by the sum, which is what a beam search can bound.

    Raises:
        ValueError: `score` is neither, or the catalogue is faulty (see `Catalogue`).

    Example:
        >>> recommender = Recommender.from_pretrained("my-model", data="my-data")  # doctest: +SKIP
        >>> recommender.recommend(["1", "Toy Story (1995)"], k=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        items: pl.DataFrame,
        template: PromptTemplate,
        *,
        score: Literal["sum", "mean"] = "sum",
    ) -> None:
        if score not in ("sum", "mean"):
            raise ValueError(f"score must be 'sum' or 'mean', not {score!r}.")
        self.model = model
        self.tokenizer = tokenizer
        self.catalogue = Catalogue(items)
        self.template = template
        self.score = score
        self._tries = PromptTries(tokenizer, self.catalogue.titles, template)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        data: str | os.PathLike[str] | None = None,
        items: pl.DataFrame | None = None,
        template: PromptTemplate | None = None,
        score: Literal["sum", "mean"] | None = None,
        **model_options: Any,
    ) -> Recommender:
        """Load a model and what belongs to it.

        Catalogue and template come from `items` and `template` where given, else from `data`, else from what
        `save_pretrained` left beside the model.

        Args:
            path: A folder or hub id of a model, or of an adapter, whose base model is then loaded too.
            data: A prepared folder (`dmpo-trl prepare`).
            items: See the class.
            template: See the class.
            score: See the class; by default what was saved, else `"sum"`.
            **model_options: For the model's `from_pretrained`: `dtype`, `device_map`, `revision`,
                `trust_remote_code`, ...

        Raises:
            ValueError: No catalogue or no template is given and none was saved.
        """
        path = str(path)
        saved: dict[str, Any] = {}
        if data is not None:
            from ..data.preparation.folder import Prepared

            prepared = Prepared.load(Path(data))
            items = prepared.items if items is None else items
            template = template or prepared.template
        elif items is None or template is None:
            settings, stored = (
                cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_options(model_options))
                for name in (_SETTINGS, _ITEMS)
            )
            if settings is None or stored is None:
                raise ValueError(
                    f"{path} holds no {_SETTINGS} and {_ITEMS}: give data=<the prepared folder>, or items= and "
                    "template=. `Recommender.save_pretrained` stores them beside the model."
                )
            saved = json.loads(Path(settings).read_text(encoding="utf-8"))
            items = pl.read_parquet(stored) if items is None else items
            template = template or PromptTemplate.from_dict(saved["template"])

        model, tokenizer = load_model_and_tokenizer(path, **model_options)
        return cls(model.eval(), tokenizer, items, template, score=score or saved.get("score", "sum"))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save model (or adapter), tokenizer, catalogue and template to a folder that `from_pretrained` loads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.save_catalogue(folder)

    def save_catalogue(self, folder: str | os.PathLike[str]) -> None:
        """Save catalogue and template alone, to a folder that holds the model or will."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.catalogue.frame.write_parquet(folder / _ITEMS)
        settings = {"template": self.template.to_dict(), "score": self.score}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def rank(self, history: Sequence[str], candidates: Sequence[str]) -> list[Recommendation]:
        """Score candidates after a history, all in one forward, and sort them from best to worst.

        Args:
            history: Items from old to new.
            candidates: Items. Equal scores keep their order.

        Raises:
            ValueError: An entry is not in the catalogue, or there are no candidates.
        """
        rows = self.catalogue.rows(candidates, "candidates")
        if not rows:
            raise ValueError("candidates: the list is empty; there is nothing to rank.")
        titles = [self.catalogue.titles[row] for row in rows]
        shown = titles if self.template.candidates is not None else None
        prompt = self.template.prompt(self._titles(history, "history"), shown)
        scores = self.score_titles([prompt], [titles])[0]
        return [self._recommendation(rows[i], scores[i]) for i in np.argsort(-scores, kind="stable")]

    def score_titles(self, prompts: Sequence[Any], titles: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Score of each title after its prompt, by the recommender's `score`; one array a prompt."""
        completions = [[self.template.completion(title) for title in group] for group in titles]
        scored = score_completions(self.model, self.tokenizer, prompts, completions)
        return [one.logps / one.lengths if self.score == "mean" else one.logps for one in scored]

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Iterable[str] = (),
        num_beams: int = 100,
        exact: bool = False,
    ) -> list[Recommendation]:
        """The best items of the whole catalogue after a history, by a beam search that only titles can come out of.

        Args:
            history: Items from old to new. They are not recommended again.
            k: Number of items. Where fewer are left in the catalogue, all of them come out, with a log line.
            exclude: Further items that must not come out.
            num_beams: Number of title beginnings followed at a time, raised to `k` where it is less. The more, the
                closer to scoring the whole catalogue, and the slower.
            exact: Search on, with more beams, until the outcome is proven to be the best `k` of the whole catalogue.

        Returns:
            From best to worst. The score is the log-prob that `rank` gives with `score="sum"`.

        Raises:
            ValueError: An entry is not in the catalogue, `k` or `num_beams` is below 1, or the template lists
                candidates in the prompt.
        """
        return self.recommend_batch([history], k, exclude=[exclude], num_beams=num_beams, exact=exact)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude: Sequence[Iterable[str]] | None = None,
        num_beams: int = 100,
        exact: bool = False,
    ) -> list[list[Recommendation]]:
        """`recommend` for several users in one search; `exclude` has one entry a user."""
        if k < 1 or num_beams < 1:
            raise ValueError(f"k and num_beams must be at least 1, they are {k} and {num_beams}.")
        if self.template.candidates is not None:
            raise ValueError(
                "The template lists candidates in the prompt, so it cannot recommend from the whole catalogue: rank "
                "candidates, or train with a template without them."
            )
        searches = []
        for history, own_exclude in zip(histories, exclude or [()] * len(histories), strict=True):
            seen = self.catalogue.rows(history, "history")
            prompt_ids, trie = self._tries(self.template.prompt([self.catalogue.titles[row] for row in seen]))
            searches.append(Search(prompt_ids, trie, [*seen, *self.catalogue.rows(own_exclude, "exclude")], k))
        with evaluation_mode(self.model):
            (exact_search if exact else beam_search)(self.model, searches, max(k, num_beams))
        if short := [len(search.found) for search in searches if len(search.found) < k]:
            logger.warning(
                "k=%d, but %d of %d users have fewer items left in the catalogue, and get all of them (%d at least).",
                k,
                len(short),
                len(searches),
                min(short),
            )
        return [[self._recommendation(row, score) for score, row in search.found] for search in searches]

    def recommend_all(
        self,
        users: Iterable[tuple[str, Sequence[str]] | UserHistory],
        path: str | os.PathLike[str],
        k: int = 10,
        *,
        num_beams: int = 100,
        exact: bool = False,
        batch_size: int = 8,
    ) -> int:
        """`recommend` for any number of users, streamed to a Parquet file with a progress bar.

        Memory is bounded by the batch. The file appears under its name only when it is complete.

        Args:
            users: Each a user and its history, and optionally what else it has `seen`; may be a generator.
            path: The file: columns `user`, `rank` (from 1), `item`, `title`, `score`. One that exists is replaced.
            k: See `recommend`.
            num_beams: See `recommend`.
            exact: See `recommend`.
            batch_size: Users searched together.

        Returns:
            The number of users.

        Raises:
            ValueError: See `recommend`; the message names the user.
        """
        return write_recommendations(self, users, Path(path), k, batch_size, num_beams=num_beams, exact=exact)

    def explain(self, history: Sequence[str], item: str, *, max_new_tokens: int = 60) -> Explanation:
        """Which items of the history carry a recommendation; see `Explanation`.

        Args:
            history: Items from old to new, at least one.
            item: The recommended item.
            max_new_tokens: Length of the model's own words, in tokens; 0 for none.
        """
        from .explanation import explain

        return explain(self, history, item, max_new_tokens)

    def _titles(self, entries: Iterable[str], what: str) -> list[str]:
        return [self.catalogue.titles[row] for row in self.catalogue.rows(entries, what)]

    def _recommendation(self, row: int, score: float) -> Recommendation:
        return Recommendation(self.catalogue.items[row], self.catalogue.titles[row], float(score))
