"""Recommender: a language model, a catalogue and a prompt template."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..modeling.limits import Limits
from ..modeling.loading import evaluation_mode, load_model_and_tokenizer
from ..scoring import check_score, score_completions
from ._run import describe_run
from ._saved import ITEMS, SETTINGS, find_beside, save_beside
from .batch import write_recommendations
from .catalogue import Catalogue, PromptTries
from .decoding.beam_search import NAN, Search, beam_search, every_item, exact_search, log_short
from .explanation import Explanation, generate_words, question_why
from .recommendation import Recommendation, UserHistory


class Recommender:
    """Recommends items of a catalogue with a language model.

    Histories and candidates are given as item ids or as titles. Anything else is a `ValueError` that names the
    entry and the closest titles.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        items: The catalogue: columns `item` and `title`. Items may share a title; the model cannot tell them apart,
            so they have the same score and come out together.
        template: Makes the prompts, as in training.
        score: `"sum"` ranks by the log-prob of the whole title, `"mean"` by its mean per token.

    Raises:
        ValueError: `score` is neither, or the catalogue is faulty (see `Catalogue`).

    Example:
        A model that `dmpo-trl train` wrote, with its catalogue and template:

        >>> recommender = Recommender.from_pretrained("my-model")  # doctest: +SKIP

        The same from its parts, here a tiny untrained model:

        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from dmpo_trl.data import MOVIES
        >>> words = Tokenizer(models.WordLevel({"</s>": 0, "?": 1, "Alien": 2, "Aliens": 3, "Heidi": 4}, "?"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="?")
        >>> config = LlamaConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_attention_heads=1)
        >>> items = pl.DataFrame({"item": ["1", "2", "3"], "title": ["Alien", "Aliens", "Heidi"]})
        >>> recommender = Recommender(LlamaForCausalLM(config), tokenizer, items, MOVIES.plain())
        >>> sorted(one.title for one in recommender.recommend(["Alien"], k=2))
        ['Aliens', 'Heidi']
        >>> sorted(one.item for one in recommender.rank(["Alien"], candidates=["Aliens", "3"]))
        ['2', '3']
        >>> recommender.explain(["Alien"], "Heidi").titles
        ('Alien',)
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
        check_score(score)
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
        """Load a model with its tokenizer, catalogue and template.

        Catalogue and template come from `items` and `template` where given, else from `data`, else from what
        `save_pretrained` left beside the model.

        Args:
            path: A folder or hub id of a model, or of an adapter, whose base model is then loaded too.
            data: A prepared folder (`dmpo-trl prepare`).
            items: See the class.
            template: See the class.
            score: See the class; by default what was saved beside the model, else `"sum"`.
            **model_options: For the model's `from_pretrained`: `dtype`, `device_map`, `revision`,
                `trust_remote_code`, ...

        Returns:
            The recommender, its model in evaluation mode.

        Raises:
            ValueError: No catalogue or no template is given and none was saved.

        Example:
            >>> Recommender.from_pretrained("outputs/dmpo", data="data", dtype="bfloat16")  # doctest: +SKIP
        """
        path = str(path)
        saved, stored = find_beside(path, model_options)
        if data is not None:
            from ..data.preparation.folder import Prepared

            prepared = Prepared.load(Path(data))
            items = prepared.items if items is None else items
            template = template or prepared.template
        elif items is None or template is None:
            if stored is None:
                raise ValueError(
                    f"{path} holds no {SETTINGS} and {ITEMS}: name the prepared folder with `data`, or in Python "
                    "give items and template. `Recommender.save_pretrained` stores them beside the model."
                )
            items = pl.read_parquet(stored, glob=False) if items is None else items
            template = template or PromptTemplate.from_dict(saved["template"])

        model, tokenizer = load_model_and_tokenizer(path, **model_options)
        return cls(model.eval(), tokenizer, items, template, score=score or saved.get("score", "sum"))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save model (or adapter), tokenizer, catalogue and template to a folder that `from_pretrained` loads.

        Args:
            folder: The folder; it is created if needed.

        Example:
            >>> recommender.save_pretrained("my-model")  # doctest: +SKIP
        """
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.save_catalogue(folder)

    def save_catalogue(self, folder: str | os.PathLike[str]) -> None:
        """Save only the catalogue and the template, to a folder for the model.

        Args:
            folder: The folder; it is created if needed.

        Example:
            >>> recommender.save_catalogue("outputs/dmpo")  # doctest: +SKIP
        """
        save_beside(folder, self.catalogue.frame, self.template, self.score)

    def rank(self, history: Sequence[str], candidates: Sequence[str]) -> list[Recommendation]:
        """Score candidates after a history and sort them.

        Args:
            history: Items from old to new.
            candidates: Items. Equal scores keep their order.

        Returns:
            The candidates, from best to worst.

        Raises:
            ValueError: An entry is not in the catalogue, there are no candidates, or the model's log-probs are NaN.

        Example:
            >>> for one in recommender.rank(["Alien"], candidates=["Aliens", "Heidi"]):  # doctest: +SKIP
            ...     print(one.title, one.score)
        """
        rows = self.catalogue.rows(candidates, "candidates")
        if not rows:
            raise ValueError("candidates: the list is empty; there is nothing to rank.")
        titles = [self.catalogue.titles[row] for row in rows]
        shown = titles if self.template.candidates is not None else None
        prompt = self.template.prompt(self._titles(history, "history"), shown)
        scores = self._score_titles([prompt], [titles])[0]
        return [self._recommendation(rows[i], scores[i]) for i in np.argsort(-scores, kind="stable")]

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Iterable[str] = (),
        num_beams: int = 100,
        exact: bool = False,
    ) -> list[Recommendation]:
        """Search the whole catalogue for the best items after a history, with beams that can only spell titles.

        Args:
            history: Items from old to new. They are not recommended again, nor is another of the same title.
            k: Number of items. Where fewer are left in the catalogue, all of them are returned, with a warning in
                the log.
            exclude: Further items that must not be recommended.
            num_beams: Number of title beginnings followed at a time, raised to `k` where it is less. The more, the
                closer to scoring the whole catalogue, and the slower.
            exact: Search on until the result is proven to be the best `k` of all; with `"mean"`, score every title.

        Returns:
            The items, from best to worst, with the score that `rank` gives. Beams follow the sum; with `score="mean"`
            these are the best by the mean of as many items, best by the sum, as there are beams.

        Raises:
            ValueError: An entry is not in the catalogue, `k` or `num_beams` is below 1, the template lists
                candidates in the prompt, the model has no embedding for a token or for the prompt's length, or its
                log-probs are NaN.

        Example:
            >>> recommender.recommend(["Alien", "Heidi"], k=3, exclude=["Aliens"])  # doctest: +SKIP
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
        """Run `recommend` for several users in one search.

        Args:
            histories: Items of each user, from old to new. They, and their titles, are not recommended again.
            exclude: Further items that must not be recommended, one entry per user.
            k, num_beams, exact: See `recommend`.

        Returns:
            The items of each user, from best to worst.

        Raises:
            ValueError: As in `recommend`.

        Example:
            >>> recommender.recommend_batch([["Alien"], ["Heidi"]], k=3)  # doctest: +SKIP
        """
        if k < 1 or num_beams < 1:
            raise ValueError(f"k and num_beams must be at least 1, they are {k} and {num_beams}.")
        if self.template.candidates is not None:
            raise ValueError(
                "The template lists candidates in the prompt, so it cannot recommend from the whole catalogue: rank "
                "candidates, or train with a template without them."
            )
        if exclude is not None and len(exclude) != len(histories):
            raise ValueError(f"exclude: {len(histories)} histories need one entry each, there are {len(exclude)}.")
        by_mean = self.score == "mean"
        searches = [
            self._search(history, own_exclude, max(k, num_beams) if by_mean else k)
            for history, own_exclude in zip(histories, exclude or [()] * len(histories), strict=True)
        ]
        with evaluation_mode(self.model):
            search_for = every_item if exact and by_mean else exact_search if exact else beam_search
            search_for(self.model, searches, max(k, num_beams))
        log_short(searches, k)
        if by_mean:
            found = [[self.catalogue.items[row] for _, row in search.found] for search in searches]
            return [self.rank(had, own)[:k] if own else [] for had, own in zip(histories, found, strict=True)]
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
        overwrite: bool = False,
    ) -> int:
        """Run `recommend` for any number of users, to a Parquet file that appears when it is complete.

        Until then its parts are in `<path>.parts`, and an interrupted run goes on there when it is started again.

        Args:
            users: `UserHistory`, or pairs of a user and a history; may be a generator.
            path: The file: columns `user`, `rank` (from 1), `item`, `title`, `score`; its folder is created if needed.
            k, num_beams, exact: See `recommend`.
            batch_size: Number of users searched together.
            overwrite: Replace a file that exists.

        Returns:
            The number of users.

        Raises:
            ValueError: As in `recommend`, with the name of the user, or the parts are those of another run.
            OSError: The file exists, or another process is writing it.

        Example:
            >>> users = [("u1", ["Alien"]), ("u2", ["Heidi"])]  # doctest: +SKIP
            >>> recommender.recommend_all(users, "recommendations.parquet", k=10)  # doctest: +SKIP
        """
        search: dict[str, Any] = {"k": k, "num_beams": num_beams, "exact": exact}

        def recommend(batch: list[UserHistory]) -> list[list[Recommendation]]:
            return self.recommend_batch([one.history for one in batch], exclude=[one.seen for one in batch], **search)

        def check(user: UserHistory) -> None:
            self.catalogue.rows(user.seen, "seen")
            self._search(user.history, user.seen, k)

        return write_recommendations(
            users,
            Path(path),
            batch_size,
            run=describe_run(self, **search),
            recommend=recommend,
            check=check,
            overwrite=overwrite,
        )

    def explain(self, history: Sequence[str], item: str, *, max_new_tokens: int = 0) -> Explanation:
        """Measure how much each item of a history contributes to a recommendation; see `Explanation`.

        Args:
            history: Items from old to new, at least one.
            item: The recommended item.
            max_new_tokens: Length of the model's own words, in tokens; by default none.

        Returns:
            The effects, and the model's own words where asked for.

        Raises:
            ValueError: The history is empty, an entry is not in the catalogue, the template lists candidates in the
                prompt, the model has no embedding for a token or for a prompt's length, or its log-probs are NaN.

        Example:
            >>> print(recommender.explain(["Alien", "Heidi"], "Aliens"))  # doctest: +SKIP
        """
        rows = self.catalogue.rows(history, "history")
        if not rows:
            raise ValueError("history: the list is empty, so nothing in it can explain a recommendation.")
        if self.template.candidates is not None:
            raise ValueError("The template lists candidates in the prompt; explain needs one that does not.")
        (row,) = self.catalogue.rows([item], "item")
        title, titles = self.catalogue.titles[row], [self.catalogue.titles[row] for row in rows]
        variants = [titles, *(titles[:place] + titles[place + 1 :] for place in range(len(titles)))]
        prompts = [self.template.prompt(variant) for variant in variants]
        question = question_why(self.template, titles, title)
        words = generate_words(self.model, self.tokenizer, question, max_new_tokens)
        full, *without = (float(scores[0]) for scores in self._score_titles(prompts, [[title]] * len(prompts)))
        return Explanation(
            item=self.catalogue.items[row],
            title=title,
            score=full,
            history=tuple(self.catalogue.items[row] for row in rows),
            titles=tuple(titles),
            effects=full - np.array(without),
            words=words,
            kind=self.score,
        )

    def _search(self, history: Sequence[str], exclude: Iterable[str], k: int) -> Search:
        seen = self.catalogue.rows(history, "history")
        prompt_ids, trie = self._tries(self.template.prompt([self.catalogue.titles[row] for row in seen]))
        # In place of all titles, one that is as long as the longest, of the largest token
        Limits.of(self.model).check("history", prompt_ids, [[int(trie.token.max())] * trie.depth])
        had = self.catalogue.of_same_title([*seen, *self.catalogue.rows(exclude, "exclude")])
        return Search(prompt_ids, trie, had, k)

    def _score_titles(self, prompts: Sequence[Any], titles: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Score the titles after each prompt by the recommender's `score`; one array (titles,) per prompt."""
        completions = [[self.template.completion(title) for title in group] for group in titles]
        scored = score_completions(self.model, self.tokenizer, prompts, completions, special_tokens_in_text=False)
        if not all(np.isfinite(one.logps).all() for one in scored):
            raise ValueError(NAN)
        return [one.by(self.score) for one in scored]

    def _titles(self, entries: Iterable[str], what: str) -> list[str]:
        return [self.catalogue.titles[row] for row in self.catalogue.rows(entries, what)]

    def _recommendation(self, row: int, score: float) -> Recommendation:
        return Recommendation(self.catalogue.items[row], self.catalogue.titles[row], float(score))
