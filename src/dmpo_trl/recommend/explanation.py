"""Explanations: what each item of a history contributes to a recommendation, and the model's own words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.prompts import PromptTemplate
from ..modeling.generation import generate_greedily, stop_tokens
from ..modeling.limits import Limits
from ..preprocessing.tokenize import tokenize_completions
from .catalogue import Catalogue
from .scorer import Scorer

_HALF = 12  # width of the bars to either side, in characters
_LITTLE = 0.05  # nats; what changes the score by less does not matter much
_WHY = "Why do you recommend {title}? Answer in one sentence."
_WORDS = "The model's own words"


@dataclass(frozen=True)
class Explanation:
    """What a recommendation rests on.

    `effects` is evidence: the recommendation's score with the whole history minus the score with one item removed. It
    says how the model's score reacts, one removal at a time; items that can replace each other may each have a small
    effect. `words` is not evidence: it is text that the same model generates when asked, fluent whether or not it
    names the cause. Read it next to the effects, never instead of them.

    Attributes:
        item: The recommended item.
        title: Its title.
        score: Its log-prob after the whole history, of the `kind` below.
        history: The items of the history, from old to new.
        titles: Their titles.
        effects: Contribution of each to the score, (history,), in nats. Positive: it speaks for the recommendation.
        words: The model's own words; empty where none were asked for.
        kind: The recommender's `score`: `"sum"` over the title's tokens, or `"mean"` per token.

    Example:
        >>> effects = np.array([0.25, -0.5])
        >>> print(Explanation("7", "Aliens", -3.5, ("1", "2"), ("Alien", "Heidi"), effects, words=""))
        Aliens (score -3.50, sum of the tokens). What each item of the history adds to the score, in nats:
          Alien   +0.250              |██████
          Heidi   -0.500  ████████████|
          (a full bar is 0.5; bars to the left speak against the recommendation)
    """

    item: str
    title: str
    score: float
    history: tuple[str, ...]
    titles: tuple[str, ...]
    effects: np.ndarray
    words: str
    kind: Literal["sum", "mean"] = "sum"

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        row: int,
        history: Sequence[int],
        scores: np.ndarray,
        words: str,
        kind: Literal["sum", "mean"],
    ) -> Explanation:
        """Return the explanation of an item of a catalogue.

        Args:
            catalogue: The catalogue.
            row: The item.
            history: The items of the history.
            scores: Of the item, after the whole history and without each of its items, (1 + history,).
            words: See the class.
            kind: See the class.
        """
        items, titles = (tuple(names[had] for had in history) for names in (catalogue.items, catalogue.titles))
        effects = scores[0] - scores[1:]
        item, title, score = catalogue.items[row], catalogue.titles[row], float(scores[0])
        return cls(item, title, score, items, titles, effects, words, kind)

    def __str__(self) -> str:
        """Return the effects as bars to either side of zero, from the most positive on, with their scale."""
        width = max(map(len, self.titles))
        largest = float(np.abs(self.effects).max())
        full = _round_up(max(largest, 2 * _LITTLE))
        kind = "mean per token" if self.kind == "mean" else "sum of the tokens"
        lines = [
            f"{self.title} (score {self.score:.2f}, {kind}). What each item of the history adds to the score, in nats:"
        ]
        for index in np.argsort(-self.effects, kind="stable"):
            effect = self.effects[index]
            bar = "█" * round(abs(effect) / full * _HALF)
            left, right = (bar, "") if effect < 0 else ("", bar)
            lines.append(f"  {self.titles[index]:<{width}}  {effect:+7.3f}  {left:>{_HALF}}|{right}")
        lines.append(f"  (a full bar is {full:g}; bars to the left speak against the recommendation)")
        if largest < _LITTLE:
            lines.append(f"No item matters much: without any one of them the score changes by less than {_LITTLE:g}.")
        if self.words:
            lines.append(f"In the model's words (generated, no evidence of the cause): {self.words}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the effects as horizontal bars, oldest item at the top.

        Args:
            path: The picture; its ending gives the format (.png, .svg, .pdf).

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = import_figure()(figsize=(8, 1.5 + 0.35 * len(self.titles)), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(self.titles))
        axes.barh(places, self.effects, color=np.where(self.effects >= 0, "tab:blue", "tab:red").tolist())
        axes.set_yticks(places, [title.replace("$", r"\$") for title in self.titles])
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("score lost when the item is removed (nats)")
        axes.set_title(f"Why {self.title}?".replace("$", r"\$"))
        figure.savefig(path)


def _round_up(value: float) -> float:
    """Return the next of ..., 0.1, 0.2, 0.5, 1, 2, 5, ..."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(power * step for step in (1, 2, 5, 10) if value <= power * step * (1 + 1e-9)))


def explain_score(scorer: Scorer, history: Sequence[int], row: int, max_new_tokens: int) -> Explanation:
    """Score an item after a history, and after the history without each of its items.

    Args:
        scorer: Scores titles.
        history: Rows of the history, at least one.
        row: The item.
        max_new_tokens: Length of the model's own words; with 0 there are none.
    """
    (title,), titles = scorer.titles([row]), scorer.titles(history)
    variants = [titles, *(titles[:place] + titles[place + 1 :] for place in range(len(titles)))]
    question = question_why(scorer.template, titles, title)
    words = generate_words(scorer.model, scorer.tokenizer, question, max_new_tokens)
    prompts = [scorer.template.prompt(variant) for variant in variants]
    scores = np.concatenate(scorer.of(prompts, [[title]] * len(prompts)))
    return Explanation.of(scorer.catalogue, row, history, scores, words, scorer.score)


def import_figure() -> Any:
    """Return matplotlib's `Figure`, to find out before the work whether there can be a picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A picture needs matplotlib: pip install '.[plot]' in a clone of dmpo-trl.") from error
    return Figure


def question_why(template: PromptTemplate, titles: Sequence[str], title: str) -> str | list[dict[str, str]]:
    """Return the prompt, the recommendation, and the question why.

    Args:
        template: Makes the prompt.
        titles: Titles of the history.
        title: The recommended one.
    """
    prompt, question = template.prompt(titles), _WHY.format(title=title)
    if isinstance(prompt, str):
        return f"{prompt}{title}\n{question}\n"
    return [*prompt, *template.completion(title), {"role": "user", "content": question}]


def generate_words(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], max_new_tokens: int
) -> str:
    """Return the model's greedy answer to a prompt.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        prompt: A text or a list of messages; what looks like a special token in it stays text.
        max_new_tokens: Length of the answer, in tokens; with 0 it is empty.

    Returns:
        The answer without special tokens and without white space around it.

    Raises:
        ValueError: The prompt has a token or a length that the model has no embedding for.
    """
    if not max_new_tokens:
        return ""
    answer: Any = "A" if isinstance(prompt, str) else [{"role": "assistant", "content": "A"}]
    prompt_ids, _ = tokenize_completions(tokenizer, prompt, [answer], special_tokens_in_text=False)
    limits = Limits.of(model)
    limits.check_tokens(_WORDS, prompt_ids)
    if limits.exceeded_by(len(prompt_ids) + max_new_tokens):
        room = max(limits.positions + 1 - len(prompt_ids), 0)
        raise ValueError(
            f"{_WORDS}: the question has {len(prompt_ids)} tokens, its answer up to {max_new_tokens}, and the model "
            f"has {limits.positions} positions. Set `max_new_tokens` to at most {room}{'' if room else ', for none'}."
        )
    (words,) = generate_greedily(
        model,
        tokenizer,
        [prompt_ids],
        max_new_tokens=max_new_tokens,
        stops=stop_tokens(model, tokenizer, prompt),
    )
    return words
