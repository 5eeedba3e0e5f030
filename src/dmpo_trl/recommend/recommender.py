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
from ..modeling.loading import load_model_and_tokenizer
from ..scoring import check_score
from ._options import check_search
from ._run import describe_run
from ._saved import find_parts, save_beside
from .batch import write_recommendations
from .candidates import Candidates
from .catalogue import Catalogue, PromptTries
from .decoding.beam_search import Search, find, log_short
from .explanation import Explanation, explain_score
from .prior import Fusion, Prior, ranked
from .recommendation import Recommendation, UserHistory
from .scorer import Scorer


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
        prior: Scores of popularity, ItemKNN, a file or your own, fused with the model's; see [`Prior`].
        prior_weight: The prior's weight, above all the one that `dmpo-trl evaluate --fuse` finds.

    Raises:
        ValueError: `score` is neither, the catalogue is faulty (see `Catalogue`), one of `prior` and `prior_weight` is
            given without the other, or the weight is not a number of at least 0.

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
        prior: Prior | None = None,
        prior_weight: float | None = None,
    ) -> None:
        check_score(score)
        self.fusion = Fusion.of(prior, prior_weight)
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
        prior: Prior | None = None,
        prior_weight: float | None = None,
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
            prior, prior_weight: See the class; they are not saved with a model.
            **model_options: For the model's `from_pretrained`: `dtype`, `device_map`, `revision`,
                `trust_remote_code`, ...

        Returns:
            The recommender, its model in evaluation mode.

        Raises:
            ValueError: No catalogue or no template is given and none was saved; and as in the class.

        Example:
            >>> Recommender.from_pretrained("outputs/dmpo", data="data", dtype="bfloat16")  # doctest: +SKIP
        """
        path = str(path)
        items, template, saved = find_parts(path, model_options, data=data, items=items, template=template)
        Fusion.of(prior, prior_weight)  # refused before the model is loaded
        model, tokenizer = load_model_and_tokenizer(path, **model_options)
        score = score or saved.get("score", "sum")
        parts = model.eval(), tokenizer, items, template
        return cls(*parts, score=score, prior=prior, prior_weight=prior_weight)

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

    def rank(
        self, history: Sequence[str], candidates: Sequence[str], *, user: str | None = None
    ) -> list[Recommendation]:
        """Score candidates after a history and sort them.

        Args:
            history: Items from old to new.
            candidates: Items. Equal scores keep their order.
            user: The user's name, for a prior that needs it.

        Returns:
            The candidates, from best to worst.

        Raises:
            ValueError: An entry is not in the catalogue, there are no candidates, the model's log-probs are NaN, or
                the prior has no scores of the user.

        Example:
            >>> for one in recommender.rank(["Alien"], candidates=["Aliens", "Heidi"]):  # doctest: +SKIP
            ...     print(one.title, one.score)
        """
        rows = self.catalogue.rows(candidates, "candidates")
        if not rows:
            raise ValueError("candidates: the list is empty; there is nothing to rank.")
        had = self.catalogue.rows(history, "history")
        if self.fusion is not None:
            self.fusion.prior.check(user)
        return self._ranked(rows, self._scorer.after([had], [rows])[0], had, user)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Iterable[str] = (),
        num_beams: int = 100,
        exact: bool = False,
        candidates: Candidates | None = None,
        user: str | None = None,
    ) -> list[Recommendation]:
        """Search the whole catalogue for the best items after a history, with beams that can only spell titles.

        With `candidates` there is no search: each of them is scored, and the best come out.

        Args:
            history: Items from old to new. They are not recommended again, nor is another of the same title.
            k: Number of items. Where fewer are left in the catalogue, all of them are returned, with a warning in
                the log.
            exclude: Further items that must not be recommended.
            num_beams: Number of title beginnings followed at a time, raised to `k` where it is less. The more, the
                closer to scoring the whole catalogue, and the slower.
            exact: Search on until the result is proven to be the best `k` of all; with `"mean"` or a prior, score
                every title.
            user: The user's name, for a prior that needs it.

        Returns:
            The items, from best to worst, with the score that `rank` gives. Beams follow the sum; with `score="mean"`
            or a prior these are the best by it of as many items, best by the sum, as there are beams.

        Raises:
            ValueError: An entry is not in the catalogue, `k` or `num_beams` is below 1, the template lists
                candidates in the prompt, the model has no embedding for a token or for the prompt's length, its
                log-probs are NaN, or the prior has no scores of the user.

        Example:
            >>> recommender.recommend(["Alien", "Heidi"], k=3, exclude=["Aliens"])  # doctest: +SKIP
        """
        search: dict[str, Any] = {"num_beams": num_beams, "exact": exact, "candidates": candidates}
        return self.recommend_batch([history], k, exclude=[exclude], users=[user], **search)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude: Sequence[Iterable[str]] | None = None,
        num_beams: int = 100,
        exact: bool = False,
        candidates: Candidates | None = None,
        users: Sequence[str | None] | None = None,
    ) -> list[list[Recommendation]]:
        """Run `recommend` for several users in one search.

        Args:
            histories: Items of each user, from old to new. They, and their titles, are not recommended again.
            exclude: Further items that must not be recommended, one entry per user.
            k, num_beams, exact, candidates: See `recommend`.
            users: Their names, for a prior or candidates that need them.

        Returns:
            The items of each user, from best to worst.

        Raises:
            ValueError: As in `recommend`.

        Example:
            >>> recommender.recommend_batch([["Alien"], ["Heidi"]], k=3)  # doctest: +SKIP
        """
        check_search(self.template, k, num_beams, exact=exact, candidates=candidates)
        for name, given in {"exclude": exclude, "users": users}.items():
            if given is not None and len(given) != len(histories):
                raise ValueError(f"{name}: {len(histories)} histories need one entry each, there are {len(given)}.")
        exclude, users = exclude or [()] * len(histories), users or [None] * len(histories)
        had = [self.catalogue.rows(history, "history") for history in histories]
        excluded = [self._excluded(*own) for own in zip(had, exclude, users, strict=True)]
        # Beams find what is best by the sum; another order needs more of it to choose from
        other_order = self.score == "mean" or self.fusion is not None
        if candidates is not None:
            rows = [candidates.rows(self.catalogue, *own) for own in zip(had, excluded, users, strict=True)]
            log_short([len(own) for own in rows], k, "candidates that they have not had")
        else:
            wanted = max(k, num_beams) if other_order else k
            searches = [self._search(own, out, wanted) for own, out in zip(had, excluded, strict=True)]
            find(self.model, searches, k, max(k, num_beams), exact=exact, by_sum=not other_order)
            rows = [[row for _, row in search.found] for search in searches]
        if candidates is None and self.score == "sum" and not (exact and other_order):
            scores = [np.array([score for score, _ in search.found]) for search in searches]
        else:  # nothing was scored yet, or otherwise
            scores = self._scorer.after(had, rows)
        return [self._ranked(*own)[:k] for own in zip(rows, scores, had, users, strict=True)]

    def recommend_all(
        self,
        users: Iterable[tuple[str, Sequence[str]] | UserHistory],
        path: str | os.PathLike[str],
        k: int = 10,
        *,
        num_beams: int = 100,
        exact: bool = False,
        candidates: Candidates | None = None,
        batch_size: int = 8,
        overwrite: bool = False,
    ) -> int:
        """Run `recommend` for any number of users, to a Parquet file that appears when it is complete.

        Until then its parts are in `<path>.parts`, and an interrupted run goes on there when it is started again.
        Several processes (`accelerate launch`, `torchrun`) share the users; all of them must call this function.

        Args:
            users: `UserHistory`, or pairs of a user and a history; may be a generator.
            path: The file: columns `user`, `rank` (from 1), `item`, `title`, `score`, with a prior also `model_score`
                and `prior_score`; its folder is created if needed.
            k, num_beams, exact, candidates: See `recommend`.
            batch_size: Number of users searched together.
            overwrite: Replace a file that exists.

        Returns:
            The number of users.

        Raises:
            ValueError: As in `recommend`, with the user's name; two have one name; the parts are of another run.
            OSError: The file exists, or another process is writing it.

        Example:
            >>> users = [("u1", ["Alien"]), ("u2", ["Heidi"])]  # doctest: +SKIP
            >>> recommender.recommend_all(users, "recommendations.parquet", k=10)  # doctest: +SKIP
        """
        check_search(self.template, k, num_beams, exact=exact, candidates=candidates)
        search: dict[str, Any] = {"k": k, "num_beams": num_beams, "exact": exact}

        def recommend(batch: list[UserHistory]) -> list[list[Recommendation]]:
            names, histories, seen = zip(*batch, strict=True)
            return self.recommend_batch(histories, exclude=seen, users=names, candidates=candidates, **search)

        bound = Limits.of(self.model).bind(self.tokenizer)  # else no prompt is made to be checked only

        def check(user: UserHistory) -> None:
            had = self.catalogue.rows(user.history, "history")
            excluded = self._excluded(had, user.seen, user.user, "seen")
            if candidates is not None:
                candidates.check(user.user)
            if bound and candidates is not None:
                self._scorer.check(had, candidates.rows(self.catalogue, had, excluded, user.user))
            elif bound:
                self._search(had, (), k)

        return write_recommendations(
            users,
            Path(path),
            batch_size,
            run=describe_run(self, candidates=None if candidates is None else candidates.describe(), **search),
            recommend=recommend,
            check=check,
            model=self.model,
            with_prior=self.fusion is not None,
            overwrite=overwrite,
        )

    def explain(self, history: Sequence[str], item: str, *, max_new_tokens: int = 0) -> Explanation:
        """Measure how much each item of a history adds to the model's score, prior or not; see `Explanation`.

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
        return explain_score(self._scorer, rows, row, max_new_tokens)

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.model, self.tokenizer, self.catalogue, self.template, self.score)

    def _excluded(
        self, had: Sequence[int], exclude: Iterable[str], user: str | None, name: str = "exclude"
    ) -> list[int]:
        """Return the rows that must not come out for a user, whom the prior must know."""
        if self.fusion is not None:
            self.fusion.prior.check(user)
        return self.catalogue.of_same_title([*had, *self.catalogue.rows(exclude, name)])

    def _search(self, had: Sequence[int], excluded: Iterable[int], k: int) -> Search:
        prompt_ids, trie = self._tries(self.template.prompt(self._scorer.titles(had)))
        # In place of all titles, one that is as long as the longest, of the largest token
        Limits.of(self.model).check("history", prompt_ids, [[int(trie.token.max())] * trie.depth])
        return Search(prompt_ids, trie, excluded, k)

    def _ranked(
        self, rows: Sequence[int], scores: np.ndarray, history: Sequence[int], user: str | None
    ) -> list[Recommendation]:
        """Sort items of the catalogue by their scores, and by the prior where there is one."""
        items, titles = ([names[row] for row in rows] for names in (self.catalogue.items, self.catalogue.titles))
        return ranked(items, titles, scores, [self.catalogue.items[row] for row in history], user, self.fusion)
