"""Benchmark of the data half, from raw files to a preference dataset: the package against plain pandas.

    python benchmarks/data.py --folder /tmp/raw --output benchmarks/results

The script writes a MovieLens-format file of 25 million ratings (CSV, as ML-25M) and an Amazon-format file of 10
million reviews (JSON lines, gzip, as the release of 2018) of made-up users into `--folder`, where a second run finds
them. Then each side, in a fresh process, reads the files, cleans them, holds out the last item of each user
(MovieLens: of those rated 4 or higher; Amazon: after the 5-core), draws negatives that the user never had, and writes
prompts and completions to Parquet. The run stops if the sides differ in histories, targets or prompts, or if a
negative breaks the rules. Peak memory is the resident memory of the whole process, imports included. Linux only.
"""

import gzip
import html
import io
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import report

# Each side imports its own libraries, so that neither pays for the other's
HISTORY, CORE, LIKED = 10, 5, 4.0
SIDES = ("pandas", "ours")
COLUMNS = ["source", "side", "rows", "examples", "seconds", "by stage", "rows per second", "times faster"]
COLUMNS += ["cpu_seconds", "peak_gb", "share of memory"]


@dataclass
class Settings:
    folder: Path = field(default=Path("benchmark-data"), metadata={"help": "For the raw files and what is made."})
    ratings: int = field(default=25_000_000, metadata={"help": "Rows of the MovieLens file; 0 leaves it out."})
    reviews: int = field(default=10_000_000, metadata={"help": "Rows of the Amazon file; 0 leaves it out."})
    negatives: int = 7
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    name: str = field(default="data", metadata={"help": "Beginning of the file name in --output."})


@dataclass
class Outcome:
    """Seconds of one side by stage, and the peak of its resident memory."""

    seconds: dict[str, float]
    cpu_seconds: float
    peak_gb: float


# Raw files


def write_movielens(folder: Path, rows: int) -> None:
    """Write as many ratings per user and per film as in ML-25M, sorted by user and film, as there."""
    import polars as pl

    rng = np.random.default_rng(0)
    user, item = draw_pairs(rng, rows, users=max(rows // 154, 20), items=max(rows // 400, 500))
    start = rng.integers(800_000_000, 1_570_000_000, user.max() + 1)
    frame = pl.DataFrame(
        {
            "userId": user + 1,
            "movieId": item + 1,
            "rating": rng.choice([1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0], rows),
            "timestamp": start[user] + rng.integers(0, 10_000_000, rows),
        }
    )
    films = [
        {"movieId": i + 1, "title": f"Film {i + 1} ({1930 + i % 90})", "genres": "Drama"}
        for i in range(item.max() + 1)
    ]
    pl.DataFrame(films).write_csv(folder / "movies.csv")
    frame.write_csv(folder / "ratings.csv")


def write_amazon(folder: Path, rows: int) -> None:
    """Write reviews sorted by product. One row in a hundred is a repetition; some titles are missing or escaped."""
    import polars as pl

    rng = np.random.default_rng(0)
    users, items = max(rows // 9, 20), max(rows // 60, 50)
    user, item = draw_pairs(rng, rows - rows // 100, users, items)
    again = rng.integers(0, len(user), rows // 100)
    user, item = np.concatenate([user, user[again]]), np.concatenate([item, item[again]])
    order = np.argsort(item, kind="stable")
    user, item = user[order], item[order]
    words = np.array(
        ["good", "bad", "my", "son", "loves", "this", "it", "broke", "after", "two", "weeks", "would", "buy"]
    )
    texts = pl.Series([" ".join(rng.choice(words, length)) for length in rng.integers(5, 60, 5000)])
    titles = [
        None if i % 50 == 49 else f"Product {i} &amp; Co" if i % 7 == 0 else f"Product {i}" for i in range(items)
    ]
    asins = pl.Series([f"B{i:09}" for i in range(items)])
    with gzip.open(folder / "meta_Made_Up.json.gz", "wb", compresslevel=1) as file:
        pl.DataFrame({"asin": asins, "title": titles, "price": "$9.99", "brand": "None"}).write_ndjson(file)
    with gzip.open(folder / "Made_Up_5.json.gz", "wb", compresslevel=1) as file:
        for start in range(0, rows, 500_000):
            part = user[start : start + 500_000]
            text = texts.gather(rng.integers(0, len(texts), len(part)))
            frame = pl.DataFrame(
                {
                    "overall": rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], len(part)),
                    "verified": True,
                    "reviewerID": pl.Series(part).cast(pl.String).str.zfill(13),
                    "asin": asins.gather(item[start : start + 500_000]),
                    "reviewText": text,
                    "summary": text.str.slice(0, 20),
                    "unixReviewTime": rng.integers(1_000_000_000, 1_540_000_000, len(part)),
                }
            ).with_columns(pl.lit("A").add(pl.col("reviewerID")).alias("reviewerID"))
            lines = io.BytesIO()
            frame.write_ndjson(lines)
            file.write(lines.getbuffer())


def draw_pairs(rng: np.random.Generator, rows: int, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw distinct pairs of a user and an item, sorted; a few items belong to many users."""
    pairs = np.empty(0, np.int64)
    while len(pairs) < rows:
        more = rows + rows // 4
        item = (items * rng.random(more) ** 3).astype(np.int64)
        pairs = np.unique(np.concatenate([pairs, rng.integers(0, users, more) * items + item]))
    pairs = np.sort(rng.choice(pairs, rows, replace=False))
    return pairs // items, pairs % items


# The sides. Each writes preference.parquet and, for the checks, examples.parquet


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def run_ours(source: str, raw: Path, made: Path, negatives: int) -> dict[str, float]:
    from dmpo_trl.data import leave_one_out
    from dmpo_trl.data.datasets import preference_dataset
    from dmpo_trl.data.filters import k_core
    from dmpo_trl.data.negatives import sample_negatives
    from dmpo_trl.data.prompts import MOVIES
    from dmpo_trl.data.readers.amazon import read_amazon
    from dmpo_trl.data.readers.movielens import read_movielens

    seconds: dict[str, float] = {}
    with stage("read", seconds):
        data = read_movielens(raw) if source == "movielens" else read_amazon(raw)
    with stage("examples", seconds):
        if source == "amazon":
            data = k_core(data, users=CORE, items=CORE)
        examples = leave_one_out(
            data, min_rating=LIKED if source == "movielens" else None, history_length=HISTORY, min_history=1
        )
    with stage("negatives", seconds):
        examples = sample_negatives(examples, data, negatives, seed=0)
    with stage("text", seconds):
        preference_dataset(examples, data, MOVIES.plain()).to_parquet(made / "preference.parquet")
    examples.write_parquet(made / "examples.parquet")
    return seconds


def run_pandas(source: str, raw: Path, made: Path, negatives: int) -> dict[str, float]:
    import pandas as pd

    seconds: dict[str, float] = {}
    with stage("read", seconds):
        if source == "movielens":
            rows = pd.read_csv(raw / "ratings.csv")
            items = pd.read_csv(raw / "movies.csv")[["movieId", "title"]]
        else:
            fields = ["reviewerID", "asin", "overall", "unixReviewTime"]
            options: dict[str, Any] = {"lines": True, "dtype": False}
            chunks = pd.read_json(raw / "Made_Up_5.json.gz", chunksize=100_000, **options)
            rows = pd.concat([chunk[fields] for chunk in chunks])
            items = pd.read_json(raw / "meta_Made_Up.json.gz", **options)[["asin", "title"]]
        rows = rows.set_axis(["user", "item", "rating", "timestamp"], axis=1)
        items = items.set_axis(["item", "title"], axis=1).dropna().drop_duplicates("item")
        items["title"] = items["title"].map(html.unescape).str.strip()
        items["first"] = items.groupby("title")["item"].transform("first")
        rows = rows.dropna().merge(items[["item", "first"]], on="item")
        rows["item"] = rows.pop("first")
        rows = rows.sort_values("timestamp", kind="stable").drop_duplicates(["user", "item"], keep="last")
    with stage("examples", seconds):
        while source == "amazon":
            enough = rows.groupby("user")["item"].transform("size") >= CORE
            enough &= rows.groupby("item")["user"].transform("size") >= CORE
            if enough.all():
                break
            rows = rows[enough]
        liked = rows[rows["rating"] >= LIKED] if source == "movielens" else rows
        liked = liked.groupby("user")["item"].agg(list)
        liked = liked[liked.str.len() > 1]
    with stage("negatives", seconds):
        had = rows.groupby("user")["item"].agg(set)
        catalogue = np.sort(rows["item"].unique() if source == "amazon" else items["first"].unique())
        rng = np.random.default_rng(0)
        drawn = []
        for user in liked.index:
            row: list[Any] = []
            while len(row) < negatives:
                item = catalogue[rng.integers(len(catalogue))]
                if item not in had[user] and item not in row:
                    row.append(item)
            drawn.append(row)
    with stage("text", seconds):
        title = dict(zip(items["item"], items["title"], strict=True))
        examples = pd.DataFrame(
            {
                "user": liked.index,
                "history": [items[:-1][-HISTORY:] for items in liked],
                "target": [items[-1] for items in liked],
                "negatives": drawn,
            }
        )
        texts = []
        for history, target, others in zip(examples["history"], examples["target"], drawn, strict=True):
            films = "\n".join(title[item] for item in history)
            prompt = f"You recommend films.\nWhich film will a viewer like next, after these?\n{films}\n"
            texts.append({"prompt": prompt, "chosen": title[target], "rejected": [title[item] for item in others]})
        pd.DataFrame(texts).to_parquet(made / "preference.parquet")
    examples.to_parquet(made / "examples.parquet")
    return seconds


def measure(run: Callable[..., dict[str, float]], *arguments: Any) -> Outcome:
    seconds = run(*arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Outcome(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)


# Checks and report


def check(source: str, raw: Path, made: dict[str, Path], negatives: int) -> int:
    """Stop if the sides made different examples or a negative breaks the rules; return the number of examples."""
    import polars as pl

    text = pl.scan_csv(raw / "ratings.csv") if source == "movielens" else pl.scan_ndjson(raw / "Made_Up_5.json.gz")
    user, item = ("userId", "movieId") if source == "movielens" else ("reviewerID", "asin")
    had = text.select(pl.col(user).cast(pl.String).alias("user"), pl.col(item).cast(pl.String).alias("negatives"))
    texts = pl.List(pl.String)
    examples = {
        side: pl.read_parquet(folder / "examples.parquet")
        .cast({"user": pl.String, "history": texts, "target": pl.String, "negatives": texts})
        .sort("user")
        for side, folder in made.items()
    }
    for side, frame in examples.items():
        drawn = frame.select("user", pl.col("negatives").list.unique()).explode("negatives")
        broken = drawn.lazy().join(had, on=["user", "negatives"], how="semi").collect(engine="streaming").height
        if broken or drawn.height != negatives * frame.height:
            raise SystemExit(f"'{side}' draws repeated negatives, or items that their user had ({broken} of them).")
    columns = ["user", "history", "target"]
    if not examples["ours"].select(columns).equals(examples["pandas"].select(columns)):
        raise SystemExit(f"The sides made different examples of {source}. Times would mean nothing.")
    written = [pl.read_parquet(folder / "preference.parquet").sort("prompt", "chosen") for folder in made.values()]
    if not written[0].select("prompt", "chosen").equals(written[1].select("prompt", "chosen")):
        raise SystemExit(f"The sides wrote different text for {source}. Times would mean nothing.")
    return examples["ours"].height


def describe() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("polars", "pandas", "numpy", "pyarrow", "datasets")
        ),
    }


def main(arguments: list[str] | None = None) -> None:
    from transformers import HfArgumentParser

    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    header = describe()
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    lines: list[report.Row] = []
    for source, rows, write in (
        ("movielens", settings.ratings, write_movielens),
        ("amazon", settings.reviews, write_amazon),
    ):
        if not rows:
            continue
        raw = settings.folder / f"{source}-{rows}"
        if not raw.exists():
            part = raw.with_suffix(".part")
            part.mkdir(parents=True, exist_ok=True)
            in_fresh_process(write, part, rows)
            part.rename(raw)
        made, outcomes = {}, {}
        for side, run in zip(SIDES, (run_pandas, run_ours), strict=True):
            made[side] = settings.folder / f"{source}-{rows}-{side}"
            made[side].mkdir(exist_ok=True)
            outcomes[side] = in_fresh_process(measure, run, source, raw, made[side], settings.negatives)
        examples = check(source, raw, made, settings.negatives)
        for line in summarize(source, rows, examples, outcomes):
            lines.append(line)
            print(report.table_row(line, COLUMNS), flush=True)
    if settings.output is not None:
        report.add_rows(settings.output, settings.name, report.command("data", arguments), header, lines)


def summarize(source: str, rows: int, examples: int, outcomes: dict[str, Outcome]) -> Iterator[report.Row]:
    """Yield one row per side, with ratios to pandas."""
    first = outcomes["pandas"]
    for side, outcome in outcomes.items():
        seconds = sum(outcome.seconds.values())
        stages = ", ".join(f"{name} {value:.1f}" for name, value in outcome.seconds.items())
        values = (source, side, rows, examples, round(seconds, 1), stages, round(rows / seconds))
        values += (round(sum(first.seconds.values()) / seconds, 1), round(outcome.cpu_seconds, 1))
        values += (round(outcome.peak_gb, 2), round(outcome.peak_gb / first.peak_gb, 2))
        yield dict(zip(COLUMNS, values, strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
