"""Preference rows: as text, and tokenised."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from .models import VOCAB_SIZE

WORDS = ["Alien", "Babe", "Heidi", "Toy Story", "The Matrix", "The Mask", "The Rock", "Star Wars"]
# Numbers of rejected completions that differ from row to row
RAGGED = (1, 7, 3, 2)


def make_rows(counts, conversational=False):
    rows = []
    for index, count in enumerate(counts):
        titles = [WORDS[(index + i) % len(WORDS)] + " II" * (i // len(WORDS)) for i in range(count + 1)]
        # Every other row has the same history
        prompt = "Watched: " + ", ".join(WORDS[: 2 + index % 2 * index]) + ". Next:"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            titles = [[{"role": "assistant", "content": title}] for title in titles]
        else:
            titles = [" " + title for title in titles]
        rows.append({"prompt": prompt, "chosen": titles[0], "rejected": titles[1:]})
    return Dataset.from_list(rows)


def ragged_examples(seed: int, counts: Sequence[int], *, shared_history: bool = True) -> list[dict[str, Any]]:
    """Tokenised preference examples with ragged prompts, numbers of negatives and completions that begin alike."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(6, VOCAB_SIZE, (length,), generator=generator).tolist()

    preamble, history, article = tokens(5, 5), tokens(12, 12), tokens(1, 2)
    examples = []
    for index, count in enumerate(counts):
        own_history = history if shared_history and index % 2 else tokens(4, 20)
        completions = [(article if i % 2 else []) + tokens(1, 6) + [2] for i in range(count + 1)]
        examples.append(
            {
                "prompt_ids": preamble + own_history + tokens(0, 3),
                "chosen_ids": completions[0],
                "rejected_ids": completions[1:],
            }
        )
    return examples


def prompts_and_completions(examples: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The token ids of tokenised examples as `lay_out` takes them, the chosen completion first."""
    return (
        [example["prompt_ids"] for example in examples],
        [[example["chosen_ids"], *example["rejected_ids"]] for example in examples],
    )
