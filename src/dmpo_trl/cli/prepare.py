"""`dmpo-trl prepare`: raw files to a folder of datasets."""

from __future__ import annotations

from .options import Parser


def make_parser() -> Parser:
    """Return the command's parser."""
    from ..data import PrepareConfig

    example = (
        "dmpo-trl prepare --dataset movielens --version 1m --download --min_rating 4 --output_dir data\n"
        "dmpo-trl prepare --dataset table --path views.csv --template products --output_dir data"
    )
    return Parser("prepare", PrepareConfig, example=example)


def run(arguments: list[str]) -> None:
    """Prepare as the arguments say, and print how many rows each dataset has, and why."""
    from ..data import prepare
    from ..data.preparation.summary import examples_in_words

    (config,) = make_parser().parse(arguments)
    prepared = prepare(config)
    for dataset, splits in prepared.manifest["rows"].items():
        print(f"{dataset:<12}" + ", ".join(f"{rows:,} {split}" for split, rows in splits.items()))
    print(examples_in_words(prepared.manifest))
    print(f"Written to {prepared.folder}, with a README of what was read, dropped and drawn.")
