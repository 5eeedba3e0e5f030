"""`dmpo-trl prepare`: raw files to a folder of datasets."""

from __future__ import annotations

from .options import parse


def run(arguments: list[str]) -> None:
    """Prepares as the arguments say, and prints how many rows each dataset got."""
    from ..data import PrepareConfig, prepare

    (config,) = parse("prepare", arguments, PrepareConfig)
    prepared = prepare(config)
    for dataset, splits in prepared.manifest["rows"].items():
        print(f"{dataset:<12}" + ", ".join(f"{rows:,} {split}" for split, rows in splits.items()))
    print(f"Written to {prepared.folder}, with a README of what was read, dropped and drawn.")
