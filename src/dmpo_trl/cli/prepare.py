"""`dmpo-trl prepare`: raw files to a folder of datasets."""

from __future__ import annotations

from trl import TrlParser


def run(arguments: list[str]) -> None:
    """Prepares as the arguments say, and prints how many rows each dataset got."""
    from ..data import PrepareConfig, prepare

    (config,) = TrlParser((PrepareConfig,), prog="dmpo-trl prepare").parse_args_and_config(arguments)
    prepared = prepare(config)
    for dataset, splits in prepared.manifest["rows"].items():
        print(f"{dataset:<12}" + ", ".join(f"{rows:,} {split}" for split, rows in splits.items()))
    print(f"Written to {prepared.folder}, with a README of what was read, dropped and drawn.")
