"""Users to rank, for several test files."""

from datasets import Dataset

TITLES = ["Alien", "Aliens", "Star Wars", "Toy Story", "The Matrix", "The Mask", "The Rock", "Babe", "Heidi"]


def make_users(count: int) -> Dataset:
    """A ranking dataset in which each user has another prompt, other candidates and another number of them."""
    rows = []
    for number in range(count):
        items = [str((number + step) % len(TITLES)) for step in range(3 + number % 5)]
        rows.append(
            {
                "user": f"u{number}",
                "history": [str((number + 8) % len(TITLES))],
                "items": items,
                "positive": number % 3,
                "prompt": f"Watched: {TITLES[(number + 8) % len(TITLES)]} {number}. Next:",
                "candidates": [f" {TITLES[int(item)]}" for item in items],
            }
        )
    return Dataset.from_list(rows)
