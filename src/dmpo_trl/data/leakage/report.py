"""Leak reports: what gives the answers of a test set away without anybody reading the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from datasets import Dataset
from scipy import stats

from ._baselines import choose_without_history, one_per_user
from ._rows import comparable, read_rows

ALPHA = 1e-4
"""A test reports what chance shows less often than this."""

_REMEDIES = {
    "repeated rows": "Rows of test that are in train: take them out of train, and split by user or by time.",
    "repeated histories": "Answers that train gives away: split by user or by time (`dmpo-trl prepare --split`).",
    "rows twice": "Rows that stand there twice: keep the first of each.",
    "negatives": "Negatives that are right answers or were in the history: draw them from what the user never had.",
    "place of target": "The target has a place of its own: shuffle the candidates of each row, from a random state of "
    "its own.",
    "candidate overlap": "Candidates that tell the row: draw those of test from another seed than those of train.",
}


@dataclass(frozen=True)
class Check:
    """What one check measured.

    Args:
        name: The check's name.
        part: "train", "test", or "both" where the parts are compared.
        text: The measurement in words.
        found: Whether it is a problem.
        values: The figures in `text`.
        rows: Numbers of the rows concerned (of the test part where the parts are compared), from 0.
    """

    name: str
    part: str
    text: str
    found: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class LeakReport:
    """What [`leak_report`] found; `print` shows it as a table.

    Args:
        checks: In the order in which they are printed.

    Example:
        >>> print(LeakReport((Check("negatives", "test", "none is the target"),)))
          negatives  test  none is the target
        No leak found.
    """

    checks: tuple[Check, ...]

    @property
    def findings(self) -> list[Check]:
        """The checks that found a problem; none for a clean data set."""
        return [check for check in self.checks if check.found]

    def __getitem__(self, name: str) -> list[Check]:
        """Return the checks of this name, one per part."""
        return [check for check in self.checks if check.name == name]

    def __str__(self) -> str:
        """Write one line per check, an exclamation mark before each problem."""
        name, part = (max(len(getattr(check, column)) for check in self.checks) for column in ("name", "part"))
        lines = [
            f"{'!' if check.found else ' '} {check.name:<{name}}  {check.part:<{part}}  {check.text}"
            for check in self.checks
        ]
        if not self.findings:
            return "\n".join([*lines, "No leak found."])
        count = len(self.findings)
        found = {check.name for check in self.findings}
        remedies = [f"- {remedy}" for name, remedy in _REMEDIES.items() if name in found]
        return "\n".join([*lines, f"{count} problem{'s' * (count != 1)} found. What to do:", *remedies])


def leak_report(train: pl.DataFrame | Dataset, test: pl.DataFrame | Dataset) -> LeakReport:
    """Look for leaks between and within the two parts of a recommendation data set.

    Problems are: test rows that repeat a training row; rows that are twice in a part; a target that stands in some
    place more often than by chance, among the candidates or in the prompt; negatives that are in the row's own history
    or the target itself; and candidate lists that tell the target. The last is measured by a baseline that never reads
    the history: it chooses the target of the training row whose candidates overlap most with those of the test row. In
    a clean data set this can do no better than chance or than always choosing the most popular candidate; on the
    published LastFM lists of S-DPO (arXiv 2406.09215), drawn with the target as the seed, it reaches HR@1 0.99.

    Tests count one row per user, where the rows name users, because the rows of a user may share a draw, and report
    what a clean data set would show less than once in 10,000 times. Popularity and the targets that both parts share
    are given for information.

    Args:
        train: Examples (`history`, `target`, `negatives` or `candidates`), or a dataset for preference, SFT or
            ranking, text or conversational, or the raw rows of S-DPO or DMPO.
        test: The same; items or text as in `train`.

    Returns:
        The report.

    Raises:
        ValueError: Where a form is unknown, a part is empty, or one part holds items and the other text.

    Example:
        >>> train = pl.DataFrame({"history": [["Alien"], ["Babe"]], "target": ["Heat", "Fargo"]})
        >>> train = train.with_columns(negatives=pl.Series([["Fargo"], ["Alien"]]))
        >>> [check.name for check in leak_report(train, train).findings]
        ['repeated rows']
    """
    if len({"prompt" in _columns(part) for part in (train, test)}) == 2:
        raise ValueError("One part holds text (`prompt`), the other items: give both as text, or both as items.")
    parts = {"train": comparable(train), "test": comparable(test)}
    for part, rows in parts.items():
        if rows.is_empty():
            raise ValueError(f"{part} has no rows.")
    return LeakReport(
        (
            _repeated(parts["train"], parts["test"]),
            _same_answer(parts["train"], parts["test"]),
            *(check(rows, part) for check in (_twice, _bad_negatives, _places) for part, rows in parts.items()),
            _shared_targets(parts["train"], parts["test"]),
            *_baselines(parts["train"], parts["test"]),
        )
    )


def _columns(part: pl.DataFrame | Dataset) -> list[str]:
    return part.columns if isinstance(part, pl.DataFrame) else part.column_names


def leak_report_of_files(train: str | Path, test: str | Path | None = None) -> LeakReport:
    """Make the leak report of two files, or of a folder that `prepare` wrote.

    Args:
        train: A Parquet, JSON or JSON lines file; or a prepared folder, of which the preference training set is taken.
        test: A file; or a prepared folder, of which the ranking test set is taken, by default the folder `train`.

    Raises:
        FileNotFoundError: Where a file is missing.
        ValueError: As in [`leak_report`], and where a column is of another type.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> rows = pl.DataFrame({"prompt": ["Next?"], "chosen": ["Alien"], "rejected": [["Babe"]]})
        >>> rows.write_parquet(f"{folder.name}/train.parquet")
        >>> report = leak_report_of_files(f"{folder.name}/train.parquet", f"{folder.name}/train.parquet")
        >>> [check.name for check in report.findings]
        ['repeated rows']
        >>> folder.cleanup()
    """
    train, test = Path(train), Path(test or train)
    if train.is_dir():
        train = train / "preference" / "train.parquet"
    if test.is_dir():
        test = test / "ranking" / "test.parquet"
    try:
        return leak_report(read_rows(train), read_rows(test))
    except pl.exceptions.PolarsError as error:
        files = dict.fromkeys(map(str, (train, test)))
        raise ValueError(
            f"{' or '.join(files)} has columns of another type than the report reads ({error})."
        ) from error


def _repeated(train: pl.DataFrame, test: pl.DataFrame) -> Check:
    """Find test rows that are training rows: same history, same target, and no negative that training lacked."""
    key = ["context", "target", "negatives"]
    trained = train.join(test, on=["context", "target"], how="semi").select(key)
    trained = trained.explode("negatives").unique().with_columns(known=True)
    asked = test.select("row", *key).explode("negatives").drop_nulls("negatives")
    known = asked.join(trained, on=key, how="left").group_by("row").agg(pl.col("known").fill_null(False).all())
    rows = known.filter("known")["row"].sort().to_list()
    text = f"{len(rows)} of {test.height:,} test rows are in train with their history, target and negatives"
    return Check("repeated rows", "both", text, found=bool(rows), rows=tuple(rows))


def _same_answer(train: pl.DataFrame, test: pl.DataFrame) -> Check:
    """Find test rows whose history is in train and whose target mostly follows it there, whatever the negatives.

    Two people can share a history, a short one above all, but seldom what follows: this is a problem only where it
    holds for significantly more than half of the shared histories.
    """
    answers = train.group_by("context", "target").len()
    usual = answers.filter(2 * pl.col("len") > pl.col("len").sum().over("context"))
    shared = test.join(answers.select("context").unique(), on="context", how="semi")
    rows = shared.join(usual, on=["context", "target"], how="semi")["row"].sort().to_list()
    p = float(stats.binom.sf(len(rows) - 1, shared.height, 0.5))
    text = (
        f"{shared.height:,} of {test.height:,} test histories are in train, {len(rows):,} with the target that mostly "
        "follows there"
    )
    return Check("repeated histories", "both", text, found=p < ALPHA, values={"p": p}, rows=tuple(rows))


def _twice(rows: pl.DataFrame, part: str) -> Check:
    """Find rows that repeat an earlier row of their part. Without negatives, two people may be behind them."""
    full = rows.filter(pl.col("negatives").list.len() > 0)
    repeats = full.filter(~pl.struct("context", "target", pl.col("negatives").list.sort()).is_first_distinct())
    text = f"{repeats.height:,} of {rows.height:,} rows repeat the history, target and negatives of an earlier row"
    return Check("rows twice", part, text, found=repeats.height > 0, rows=tuple(repeats["row"]))


def _bad_negatives(rows: pl.DataFrame, part: str) -> Check:
    """Find negatives that are right answers or were in the history."""
    target = rows.filter(pl.col("negatives").list.contains(pl.col("target")))["row"]
    seen = rows.filter(pl.col("seen") > 0)["row"]
    in_history = "cannot be told from text" if rows["seen"].null_count() == rows.height else f"in {len(seen):,}"
    return Check(
        "negatives",
        part,
        f"the target is a negative in {len(target):,} of {rows.height:,} rows, an item of the history {in_history}",
        found=len(target) + len(seen) > 0,
        values={"target": len(target), "history": len(seen)},
        rows=tuple(pl.concat([target, seen]).unique().sort()),
    )


def _places(rows: pl.DataFrame, part: str) -> Check:
    """Test the target's place among the options: the place, from either end, that is furthest from chance."""
    known = rows.filter((pl.col("places").list.len() > 0) & (pl.col("options") > 1))
    known = known.filter(one_per_user(known)).explode("places")
    if known.is_empty():
        return Check("place of target", part, "the order of the candidates is not known")
    chance = 1 / known["options"].to_numpy()
    place, last = known["places"].to_numpy(), known["options"].to_numpy() - 1
    cells = []
    for name, at in (("from the front", place), ("from the back", last - place)):
        for number in range(int(last.max()) + 1):
            there = last >= number
            n, hits, expected = int(there.sum()), int((at == number).sum()), float(chance[there].mean())
            tail = min(stats.binom.cdf(hits, n, expected), stats.binom.sf(hits - 1, n, expected))
            cells.append((float(2 * tail), f"place {number + 1} {name}", hits, n * expected))
    p, name, hits, expected_hits = min(cells)
    p = min(p * len(cells), 1.0)  # Bonferroni: the place was chosen after looking
    text = f"furthest from chance: {name}, {hits:,} of {known.height:,}, by chance {expected_hits:,.0f} (p {p:.1g})"
    return Check("place of target", part, text, found=p < ALPHA, values={"p": p, "hits": hits})


def _shared_targets(train: pl.DataFrame, test: pl.DataFrame) -> Check:
    share = float(test["target"].is_in(train["target"].implode()).mean())  # type: ignore[arg-type]
    text = f"{share:.1%} of the test targets are targets in train (for information)"
    return Check("shared targets", "both", text, values={"share": share})


def _baselines(train: pl.DataFrame, test: pl.DataFrame) -> list[Check]:
    """Measure HR@1 without the history. Overlap is a problem where it beats chance and popularity."""
    test = test.filter(pl.col("negatives").list.len() > 0)
    if test.is_empty():
        return [Check(name, "both", "test has no negatives") for name in ("popularity", "candidate overlap")]
    choices = choose_without_history(train, test)
    chance, popularity, overlap = (values.mean() for values in choices[:3])
    rate = f"of {len(choices.chance):,} test rows, chance {chance:.3f}"
    baseline = Check(
        "popularity",
        "both",
        f"HR@1 {popularity:.3f} for the most frequent training target {rate} (for information)",
        values={"hr@1": popularity, "chance": chance},
    )
    one = choices.one_per_user
    hits, n = int(choices.overlap[one].sum()), int(one.sum())
    beats_chance = stats.binom.sf(hits - 1, n, choices.chance[one].mean())
    # Sign test on the rows where only one of the two baselines is right
    wins = int((choices.overlap & ~choices.popularity)[one].sum())
    losses = int((choices.popularity & ~choices.overlap)[one].sum())
    beats_popularity = stats.binom.sf(wins - 1, wins + losses, 0.5)
    p = float(max(beats_chance, beats_popularity))
    leak = Check(
        "candidate overlap",
        "both",
        f"HR@1 {overlap:.3f} for the target of the training row with the most similar candidates {rate} (p {p:.1g})",
        found=p < ALPHA,
        values={"hr@1": overlap, "chance": chance, "p": p},
    )
    return [baseline, leak]
