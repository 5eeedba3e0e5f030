"""The few-shot files of DMPO's authors under their own protocol: which of two titles comes next.

Trained are the 100 rows for SFT and k pairs for each of their histories, ranked the 1,000 rows for evaluation, two
answers each. In the authors' wording an instruction names both titles and an answer puts them in an order, so that a
history with k negatives is k prompts, of one pair each. The same rows are also asked in our wording, where the prompt
is the history and the answers are the titles: there the k negatives of a history are those of one prompt.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl
from datasets import Dataset

from dmpo_trl.data import GAMES, MOVIES, PromptTemplate, PublishedSplits, read_dmpo
from dmpo_trl.evaluation import RankingResult

from .methods import STAGES, TRADITIONAL, Method, Scorer
from .settings import Cell, Settings

PAIRS = "pairs"
"""What the protocol is called in a cell's file."""
FOLDER = "dmpo"
"""What the folder is called after `--data`."""
MOST = 5  # negatives of a history


@dataclass(frozen=True)
class PairSource:
    """One data set of the authors', in one wording.

    Attributes:
        name: Of the data set in the files' names.
        words: Of the authors' instruction: the things, in the singular and in the plural, and what a user did with
            them, in the past and now.
        template: Our wording; None: the authors'.
        cut: Whether the training titles end at their first comma or bracket, where the others are whole: for counts,
            titles that are then equal are one.
        conversational: Messages for chat models, or else plain text.
        files: What the folder holds; for the message where it is not given.
    """

    name: str
    words: tuple[str, str, str, str]
    template: PromptTemplate | None = None
    cut: bool = False
    conversational: bool = True
    files: str = "the few-shot files of https://github.com/BZX667/DMPO: rec_*_{sft,dpo,eval}_ranking*.json"

    def read(self, folder: Path) -> PublishedSplits:
        """Read the files."""
        return read_dmpo(folder, self.name)

    def plain(self) -> Self:
        """Return the source with prompts of plain text."""
        return replace(self, template=self.template and self.template.plain(), conversational=False)

    def key(self, title: str) -> str:
        """Return what two titles of the same thing have in common."""
        return (re.split(r"[,(\[]", title, maxsplit=1)[0] if self.cut else title).strip()


_FILMS, _GAMES = ("movie", "movies", "watched", "watching"), ("Video Games", "Video Games", "shopped", "shopping")
PAIR_SOURCES = {
    f"{kind}-{name}": PairSource(file, words, template if kind == "titles" else None, cut=name == "ml-1m")
    for kind in (PAIRS, "titles")
    for name, file, words, template in (
        ("ml-1m", "data_ml_1m", _FILMS, MOVIES),
        ("movies", "Amazon_Movie", _FILMS, MOVIES),
        ("games", "Amazon_Game", _GAMES, GAMES),
    )
}


def check_pairs(cell: Cell) -> None:
    """Check that a cell of this protocol asks for what the files have.

    Raises:
        SystemExit: It does not.
    """
    own = {cell.dataset, cell.trained_on} & PAIR_SOURCES.keys()
    if not own:
        return
    stage = STAGES.get(cell.method)
    problem = None
    if own != {cell.dataset, cell.trained_on}:
        problem = f"{cell.trained_on} and {cell.dataset} do not go together: both must be pairs"
    elif cell.method in TRADITIONAL:
        problem = f"{cell.method} cannot rank pairs"
    elif stage and (stage.negatives > MOST or stage.drawn != "uniform" or stage.positions != "growing"):
        problem = f"{cell.method}: a history has one position and at most {MOST} negatives, which are drawn already"
    elif stage and stage.reference != "model":
        problem = f"{cell.method}: its reference has no history, and a pair has no prompt without one"
    elif cell.settings.explained_users or cell.settings.catalogue_users:
        problem = "pairs have neither explained_users nor catalogue_users"
    if problem:
        raise SystemExit(f"{cell.file_name.removesuffix('.json')}: {problem}.")


def instruction(words: tuple[str, str, str, str], history: Sequence[str], titles: Sequence[str]) -> str:
    """Return the authors' text for a history and two titles.

    Example:
        >>> instruction(("movie", "movies", "watched", "watching"), ["Big "], ["Antz ", "Gigi "])[-70:]
        'of the user watching the two movies  <Title:Antz >  and  <Title:Gigi > .'
    """
    one, many, did, doing = words
    had = "".join(f" <Title:{title}> " for title in history)
    first, second = titles
    return (
        f"You are an assistant working on {one} recommendations. Here is the user's history of {many} they have "
        f"{did}: {had}. Rank the likelihood of the user {doing} the two {many}  <Title:{first}>  and  "
        f"<Title:{second}> ."
    )


@dataclass
class PairUsers:
    """The histories that are trained on and the rows that are ranked; see `users.Users`."""

    source: PairSource
    data: PublishedSplits
    settings: Settings
    count: int
    seed: int

    @property
    def whole_rows(self) -> bool:
        """Whether SFT learns the prompt too: the titles of a history, but not the authors' instruction."""
        return self.source.template is not None

    @cached_property
    def train(self) -> pl.DataFrame:
        """The histories that are trained on, with what came next and one negative."""
        rows = self._part("sft")
        if self.count > len(rows):
            raise SystemExit(f"{self.source.name} has {len(rows)} training histories, not {self.count}.")
        return rows.head(self.count)

    @cached_property
    def shown(self) -> pl.DataFrame:
        """What the model sees of training histories, each once: `user`, `item`."""
        return self._had(self.train.select("user", item=pl.concat_list("history", "target")))

    @cached_property
    def ranked(self) -> pl.DataFrame:
        """The rows that are ranked, in their order."""
        return self._part("eval").head(self.settings.test_users)

    @cached_property
    def repeats(self) -> list[int]:
        """Numbers of the ranked rows, from 0, that have the history of a training row."""
        known = {self._keys(history) for history in self._part("sft")["history"]}
        return [row for row, history in enumerate(self.ranked["history"]) if self._keys(history) in known]

    def counted(self) -> dict[str, pl.DataFrame]:
        """Return what popularity and ItemKNN count, by what is added to their names.

        The ranked histories are no training data, but they are given, without what came next.
        """
        return {"": self.shown, ", ranked histories": self._had(self.ranked.select("user", item="history"))}

    def sft(self) -> Dataset:
        """Return the rows for SFT."""
        asked = self._asked(self.train)
        return Dataset.from_list([{"prompt": prompt, "completion": answers[0]} for prompt, answers in asked])

    def preference(self, method: Method, scorer: Scorer) -> Dataset:
        """Return the rows with as many negatives as the method wants: for one, the first of `dpo_ranking_2`.

        The files `_1` of the Amazon data hold other histories.
        """
        rows = self._part(f"dpo_{max(method.negatives, 2)}").join(self.train, on="user", how="semi")
        first = [pl.col(name).list.head(method.negatives) for name in ("negatives", "target_first")]
        asked = self._asked(rows.with_columns(first))
        return Dataset.from_list(
            [{"prompt": prompt, "chosen": one, "rejected": rest} for prompt, (one, *rest) in asked]
        )

    def questions(self) -> dict[str, Dataset]:
        """Return the rows to rank: the wanted answer comes first, and the order of answers has no effect."""
        rows = self.ranked.explode("negatives", "target_first")
        rows = rows.with_columns(pl.concat_list("negatives"), pl.concat_list("target_first"))
        key = self.source.key
        return {
            PAIRS: Dataset.from_list(
                [
                    {
                        "user": row["user"],
                        "history": list(self._keys(row["history"])),
                        "items": [key(row["target"]), key(row["negatives"][0])],
                        "positive": 0,
                        "prompt": prompt,
                        "candidates": answers,
                    }
                    for row, (prompt, answers) in zip(rows.to_dicts(), self._asked(rows), strict=True)
                ]
            )
        }

    def _asked(self, rows: pl.DataFrame) -> Iterator[tuple[Any, list[Any]]]:
        """Yield each prompt with its answers, the wanted one first."""
        template = self.source.template
        for row in rows.to_dicts():
            if template is not None:
                titles = [row["target"], *row["negatives"]]
                prompt = template.prompt([title.strip() for title in row["history"]])
                yield prompt, [template.completion(title.strip()) for title in titles]
                continue
            for negative, target_first in zip(row["negatives"], row["target_first"], strict=True):
                order = [row["target"], negative]
                text = instruction(self.source.words, row["history"], order if target_first else order[::-1])
                answers = [f" <Title:{one}> ,  <Title:{other}> " for one, other in (order, order[::-1])]
                if self.source.conversational:
                    yield (
                        [{"role": "user", "content": text}],
                        [[{"role": "assistant", "content": answer}] for answer in answers],
                    )
                else:
                    yield text, answers

    def _part(self, name: str) -> pl.DataFrame:
        """Return the rows of a file, one per history."""
        if name not in self.data.examples:
            kind, *number = name.split("_")
            file = "_".join(["rec", self.source.name, kind, "ranking", *number])
            raise SystemExit(f"The folder {FOLDER} has no {file}.json.")
        return self.data.examples[name]

    def _keys(self, titles: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self.source.key, titles))

    def _had(self, rows: pl.DataFrame) -> pl.DataFrame:
        pairs = rows.explode("item")
        return pairs.with_columns(item=pl.Series(map(self.source.key, pairs["item"]))).unique(maintain_order=True)


def pair_figures(results: dict[str, RankingResult], repeats: Sequence[int]) -> dict[str, Any]:
    """Return AUC and pooled AUC with their intervals, with and without repeated rows, and each row's rank.

    Args:
        results: By name.
        repeats: Numbers of the rows whose history was trained on.
    """
    content: dict[str, Any] = {"repeated rows": list(repeats)}
    for name, result in results.items():
        gaps = [
            float(own[positive] - own[1 - positive])
            for own, positive in zip(result.scores, result.positives, strict=True)
        ]
        own = {"ranker": result.name, "mean gap to the hardest": sum(gaps) / len(gaps)} | _figures(result)
        if repeats:
            own["without repeats"] = _figures(result.of_rows(sorted(set(range(len(gaps))) - set(repeats))))
        content[name] = own | {"ranks": result.ranks.places.tolist()}
    return content


def _figures(result: RankingResult) -> dict[str, Any]:
    found = result.intervals(["auc", "pooled_auc"])
    return {name: one.mean for name, one in found.items()} | {
        f"{name} interval": [round(one.low, 4), round(one.high, 4)] for name, one in found.items()
    }
