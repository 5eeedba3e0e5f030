"""Why an item is recommended: what each item of the history contributes, and what the model says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..modeling.loading import evaluation_mode

if TYPE_CHECKING:
    from .recommender import Recommender

_QUESTION = "Why do you recommend {title}? Answer in one sentence."
_BAR_WIDTH = 24


@dataclass(frozen=True)
class Explanation:
    """What carries a recommendation.

    `effects` is evidence: the recommendation's score with the whole history, less the score with one item removed. It
    says how the model's score reacts, one removal at a time; items that stand in for each other can each have a small
    effect. `words` is no evidence: it is text that the same model generates when asked, fluent whether or not it names
    the cause. Read it beside the effects, never instead.

    Attributes:
        item: The recommended item.
        title: Its title.
        score: Its score after the whole history (the recommender's `score`).
        history: The items of the history, from old to new.
        titles: Their titles.
        effects: What each contributes to the score, (history,), in nats. Positive: it speaks for the recommendation.
        words: The model's own words; empty where none were asked for.
    """

    item: str
    title: str
    score: float
    history: tuple[str, ...]
    titles: tuple[str, ...]
    effects: np.ndarray
    words: str

    def __str__(self) -> str:
        """The effects from the strongest on, as bars, and the words."""
        width = max(map(len, self.titles))
        largest = max(float(np.abs(self.effects).max()), 1e-9)
        lines = [f"{self.title} (score {self.score:.2f}). What each item of the history adds to the score:"]
        for index in np.argsort(-self.effects, kind="stable"):
            bar = "█" * round(abs(self.effects[index]) / largest * _BAR_WIDTH)
            lines.append(f"  {self.titles[index]:<{width}}  {self.effects[index]:+7.3f}  {bar}".rstrip())
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
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("A picture needs matplotlib: pip install 'dmpo-trl[plot]'.") from error
        figure = Figure(figsize=(8, 1.5 + 0.35 * len(self.titles)), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(self.titles))
        axes.barh(places, self.effects, color=np.where(self.effects >= 0, "tab:blue", "tab:red").tolist())
        axes.set_yticks(places, [title.replace("$", r"\$") for title in self.titles])
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("score lost when the item is removed (nats)")
        axes.set_title(f"Why {self.title}?".replace("$", r"\$"))
        figure.savefig(path)


def explain(recommender: Recommender, history: Sequence[str], item: str, max_new_tokens: int) -> Explanation:
    """See `Recommender.explain`."""
    catalogue, template = recommender.catalogue, recommender.template
    rows = catalogue.rows(history, "history")
    if not rows:
        raise ValueError("history: the list is empty, so nothing in it can explain a recommendation.")
    if template.candidates is not None:
        raise ValueError("The template lists candidates in the prompt; explain needs one that does not.")
    (row,) = catalogue.rows([item], "item")
    title, titles = catalogue.titles[row], [catalogue.titles[row] for row in rows]
    variants = [titles, *(titles[:place] + titles[place + 1 :] for place in range(len(titles)))]
    prompts = [template.prompt(variant) for variant in variants]
    full, *without = (float(scores[0]) for scores in recommender.score_titles(prompts, [[title]] * len(prompts)))
    return Explanation(
        item=catalogue.items[row],
        title=title,
        score=full,
        history=tuple(catalogue.items[row] for row in rows),
        titles=tuple(titles),
        effects=full - np.array(without),
        words=_own_words(recommender, titles, title, max_new_tokens) if max_new_tokens else "",
    )


def _own_words(recommender: Recommender, titles: Sequence[str], title: str, max_new_tokens: int) -> str:
    """What the model says when asked why, decoded greedily."""
    template, tokenizer, model = recommender.template, recommender.tokenizer, recommender.model
    prompt, question = template.prompt(titles), _QUESTION.format(title=title)
    if isinstance(prompt, str):
        text = f"{prompt}{title}\n{question}\n"
        inputs = tokenizer(text, return_tensors="pt")
    else:
        messages = [*prompt, *template.completion(title), {"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    device = model.get_input_embeddings().weight.device
    ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with evaluation_mode(model), torch.no_grad():
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )
    return str(tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True)).strip()
