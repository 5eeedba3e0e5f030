"""Batches of the benchmarks: MovieLens examples, random tokens, or the DMPO authors' rows."""

import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models import movielens_folder
from transformers import AutoTokenizer

PROMPT_LENGTH, TITLE_LENGTH = 270, 10  # tokens; twenty films that a MovieLens user liked

Examples = list[dict[str, Any]]  # prompt_ids, chosen_ids, rejected_ids: the batch as a collator gets it


@dataclass
class Case:
    """Batches whose gradients add up, and their common sizes."""

    label: str
    batches: list[Examples]
    negatives: int
    prompt_length: int
    batch_size: int


def sweep(
    source: Examples, negatives: list[int], prompt_lengths: list[int] | None, batch_sizes: list[int]
) -> Iterator[Case]:
    """Yield a case of one batch for every combination.

    `source` holds as many examples as the largest batch, each with as many rejected completions as the largest N.
    Prompts are cut at the front, or extended there by their own text once more, to `prompt_lengths` tokens; None
    leaves them as they are.
    """
    for length in prompt_lengths or [None]:
        prompts = [fit_prompt(example["prompt_ids"], length) for example in source]
        for batch_size in batch_sizes:
            for n in negatives:
                batch = [
                    {"prompt_ids": prompt, "chosen_ids": row["chosen_ids"], "rejected_ids": row["rejected_ids"][:n]}
                    for prompt, row in zip(prompts[:batch_size], source, strict=False)
                ]
                label = f"N={n}"
                label += f", prompt {length}" if length is not None else ""
                label += f", batch {batch_size}" if len(batch_sizes) > 1 or batch_size > 1 else ""
                mean_length = round(statistics.mean(len(row["prompt_ids"]) for row in batch))
                yield Case(label, [batch], n, mean_length, batch_size)


def fit_prompt(prompt: list[int], length: int | None) -> list[int]:
    """Return the last `length` tokens of the prompt, which is repeated as often as necessary."""
    if length is None:
        return prompt
    return (prompt * -(-length // len(prompt)))[-length:]


def random_examples(count: int, negatives: int, vocabulary: int) -> Examples:
    """Return examples of random tokens, with the lengths of MovieLens; what they share, they share by chance."""
    generator = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [generator.randrange(vocabulary) for _ in range(length)]

    return [
        {
            "prompt_ids": tokens(PROMPT_LENGTH),
            "chosen_ids": tokens(TITLE_LENGTH),
            "rejected_ids": [tokens(TITLE_LENGTH) for _ in range(negatives)],
        }
        for _ in range(count)
    ]


def position_examples(
    users: int, positions: int, negatives: int, vocabulary: int, prompt: int = PROMPT_LENGTH, title: int = TITLE_LENGTH
) -> Examples:
    """Return one example for each of the last positions of users' histories: prompts that grow inside one another.

    Each position adds the title that was chosen at the one before. The longest prompt has `prompt` tokens; what users
    share, they share by chance. Examples stand user by user.
    """
    generator = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [generator.randrange(vocabulary) for _ in range(length)]

    examples = []
    for _ in range(users):
        history = tokens(prompt + title)
        for place in range(positions):
            end = prompt - (positions - 1 - place) * title
            examples.append(
                {
                    "prompt_ids": history[:end],
                    "chosen_ids": history[end : end + title],
                    "rejected_ids": [tokens(title) for _ in range(negatives)],
                }
            )
    return examples


def tiny_examples(count: int, negatives: int) -> Examples:
    """Return examples of letters as tokens; the prompts differ in the first letter, the titles in the last ones."""
    return [
        _bytes(
            {
                "prompt": f"{chr(97 + i % 26)}{'x' * 39}",
                "chosen": "abcde",
                "rejected": [f"ab{place:03}" for place in range(negatives)],
            }
        )
        for i in range(count)
    ]


def movielens_examples(folder: str, count: int, negatives: int) -> Examples:
    """Return the MovieLens 100K examples whose lengths are closest to `PROMPT_LENGTH` and `TITLE_LENGTH`."""
    examples = [tokenize(folder, example) for example in movielens_rows(negatives)]

    def distance(ids: dict[str, Any]) -> float:
        title = statistics.mean(map(len, [ids["chosen_ids"], *ids["rejected_ids"]]))
        return abs(len(ids["prompt_ids"]) - PROMPT_LENGTH) + abs(title - TITLE_LENGTH)

    return sorted(examples, key=distance)[:count]


def movielens_rows(negatives: int) -> list[dict[str, Any]]:
    """Prompt, chosen and rejected titles of the users with at least twenty films before."""
    # Here: on a machine that reads no data, polars (54 MB) need not be there
    from dmpo_trl.data import MOVIES, leave_one_out, preference_dataset, read_recbole, sample_negatives

    data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
    users = leave_one_out(data, min_rating=4.0, history_length=20, min_history=20)
    return preference_dataset(sample_negatives(users, data, negatives, seed=0), data, MOVIES).to_list()


def growing_cases(folder: str, positions: list[int], negatives: list[int]) -> Iterator[Case]:
    """Yield the last rows of a MovieLens user whose history grew from 5 to 24 films, for every combination.

    The user is the one of whom a row has the median number of tokens, so that no choice is made by hand.
    """
    import polars as pl

    from dmpo_trl.data import MOVIES, next_items, preference_dataset, read_recbole, sample_negatives

    data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
    grown = next_items(data, min_rating=4.0, history_length=24, min_history=5, per_user=20, growing=True)
    whole = grown.filter(pl.len().over("user") == 20)
    rows = preference_dataset(sample_negatives(whole, data, max(negatives), seed=0), data, MOVIES).to_list()
    users = [rows[i : i + 20] for i in range(0, len(rows), 20)]
    users.sort(key=lambda own: len(tokenize(folder, own[-1])["prompt_ids"]))
    user = [tokenize(folder, row) for row in users[len(users) // 2]]
    for count in positions:
        for n in negatives:
            batch = [example | {"rejected_ids": example["rejected_ids"][:n]} for example in user[-count:]]
            length = round(statistics.mean(len(row["prompt_ids"]) for row in batch))
            yield Case(f"N={n}, {count} position{'s' if count > 1 else ''}", [batch], n, length, count)


def read_authors_pairs(file: Path) -> list[dict[str, Any]]:
    """Read one of the DMPO authors' files; return its texts, unchanged, as prompt, chosen and rejected."""
    return [
        {"prompt": row["instruction"] + row["input"], "chosen": row["output"][0], "rejected": row["output"][1:]}
        for row in json.loads(file.read_text())
    ]


def authors_rows(file: Path, folder: str | None, batch_rows: int, batches: int) -> Case:
    """Return the first rows of one of the DMPO authors' files, in its order; as bytes if `folder` is None."""
    pairs = read_authors_pairs(file)[: batches * batch_rows]
    examples = [_bytes(pair) if folder is None else tokenize(folder, pair) for pair in pairs]
    length = round(statistics.mean(len(example["prompt_ids"]) for example in examples))
    parts = [examples[i : i + batch_rows] for i in range(0, len(examples), batch_rows)]
    return Case(file.name, parts, len(examples[0]["rejected_ids"]), length, batch_rows)


def _bytes(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_ids": list(example["prompt"].encode()),
        "chosen_ids": list(example["chosen"].encode()),
        "rejected_ids": [list(text.encode()) for text in example["rejected"]],
    }


load_tokenizer = cache(AutoTokenizer.from_pretrained)


def tokenize(folder: str, example: dict[str, Any]) -> dict[str, Any]:
    from dmpo_trl.preprocessing.tokenize import tokenize_row

    tokenizer = load_tokenizer(folder)
    return tokenize_row(
        example,
        0,
        dataset_name="benchmark",
        processing_class=tokenizer,
        max_length=None,
        truncation_mode="keep_start",
    )
