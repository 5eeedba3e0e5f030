"""Whether explanations name what a recommendation rests on: the score lost when items of the history are removed.

Removed are those that the explanation puts first (each item's effect: the score with the whole history minus the score
without the item), those that most users had, and random ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from dmpo_trl.data import PromptTemplate
from dmpo_trl.evaluation import RankingResult
from dmpo_trl.scoring import score_completions

STEPS = 5
ORDERS = ("explained", "popular", "random")


def deletion_curves(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    ranked: RankingResult,
    titles: Mapping[str, str],
    template: PromptTemplate,
    popularity: Mapping[str, int],
    seed: int = 0,
) -> dict[str, list[list[float]]]:
    """Return the score lost, in nats, after 1, 2, ... items are removed: (users, steps) for each order of removal.

    A history keeps one item at least; where it is too short for a step, its last value stands there.

    Args:
        model: What ranks; it is explained by the sum of the tokens' log-probs.
        tokenizer: Its tokenizer.
        rows: Ranking dataset of the users.
        ranked: How the model ranks them. The best candidate of each user is the recommendation.
        titles: Of all items.
        template: Makes the prompts.
        popularity: How many training users had an item.
        seed: Of the random order.
    """
    generator = np.random.default_rng(seed)
    curves: dict[str, list[list[float]]] = {order: [] for order in ORDERS}
    for row, scores in zip(rows, ranked.scores, strict=False):
        history, item = row["history"], row["items"][int(np.argmax(scores))]

        def score(variants: list[list[str]], item: str = item) -> np.ndarray:
            prompts = [template.prompt([titles[had] for had in variant]) for variant in variants]
            completions = [[template.completion(titles[item])]] * len(prompts)
            scored = score_completions(model, tokenizer, prompts, completions, special_tokens_in_text=False)
            return np.array([float(one.by("sum")[0]) for one in scored])

        places = list(range(len(history)))
        whole, *without = score([history, *(history[:place] + history[place + 1 :] for place in places)])
        orders = {
            "explained": sorted(places, key=lambda place, without=without: without[place]),
            "popular": sorted(places, key=lambda place, history=history: -popularity.get(history[place], 0)),
            "random": generator.permutation(len(places)).tolist(),
        }
        counts = [min(step, len(history) - 1) for step in range(1, STEPS + 1)]
        variants = [
            [history[place] for place in places if place not in orders[order][:count]]
            for order in ORDERS
            for count in counts
        ]
        lost = (whole - score(variants)).reshape(len(ORDERS), STEPS).round(4)
        for order, own in zip(ORDERS, lost.tolist(), strict=True):
            curves[order].append(own)
    return curves
