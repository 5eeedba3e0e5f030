"""`dmpo-trl leaks`: report on leaks from the test set into the training data."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from .options import Parser


@dataclass
class LeaksArguments:
    """Which data to look at."""

    train: str = field(
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote, or a Parquet, JSON or JSON lines file of training rows."
        }
    )
    test: str | None = field(
        default=None,
        metadata={"help": "File of test rows, or a prepared folder. Default: the test users of the folder --train."},
    )


def make_parser() -> Parser:
    """Return the command's parser."""
    example = "dmpo-trl leaks --train data\ndmpo-trl leaks --train train.jsonl --test test.jsonl"
    return Parser("leaks", LeaksArguments, example=example)


def run(arguments: list[str]) -> None:
    """Print the report; the exit status is 1 where it found a problem."""
    from ..data import leak_report_of_files

    (options,) = make_parser().parse(arguments)
    report = leak_report_of_files(options.train, options.test)
    print(report)
    if report.findings:
        sys.exit(1)
