"""Preparation pipeline: reads, splits, draws negatives and writes the datasets, by one configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from .._random import uniform
from ..datasets import text_tables
from ..filters import k_core
from ..interactions import Interactions
from ..negatives import sample_negatives
from ..prompts import PromptTemplate
from ..readers import read_amazon, read_lastfm, read_movielens, read_recbole, read_table
from ..splits import few_shot, next_items, split_by_time, split_leave_one_out, split_users
from .config import PrepareConfig
from .folder import FORMAT, MANIFEST, Prepared, card, check_free, new_folder, sha256

logger = logging.getLogger(__name__)


def prepare(config: PrepareConfig) -> Prepared:
    """Read raw files, split them, draw negatives, and write the datasets to a folder.

    The folder holds `preference` and `sft` (splits `train` and `validation`), `ranking` (`validation` and `test`), and
    `pairs` where asked for. It appears under its name when it is complete. The same options and raw files give the
    same bytes.

    Args:
        config: What to read, how to split it, and where to write.

    Returns:
        The folder.

    Raises:
        FileExistsError: Where the folder holds something that must not be replaced.
        ValueError: For options that do not fit together or do not fit the data.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> seen = [(user, place, (user + place) % 9) for user in range(9) for place in range(5)]
        >>> rows = [f"u{user},i{film},{place},Film {film}" for user, place, film in seen]
        >>> _ = Path(folder.name, "rows.csv").write_text("\\n".join(["user,item,timestamp,title", *rows]))
        >>> config = PrepareConfig(
        ...     dataset="table",
        ...     path=f"{folder.name}/rows.csv",
        ...     output_dir=f"{folder.name}/out",
        ...     template="movies",
        ...     negatives=2,
        ...     candidates=3,
        ... )
        >>> prepare(config).manifest["rows"]["preference"]
        {'train': 7, 'validation': 1}
        >>> folder.cleanup()
    """
    template = config.prompt_template()
    output = Path(config.output_dir)
    check_free(output, overwrite=config.overwrite)  # before the work, not only after it
    data = _read(config)
    if config.k_core_users > 1 or config.k_core_items > 1:
        data = k_core(data, users=config.k_core_users, items=config.k_core_items)
    examples = _split(data, config)
    items = _with_popularity(data.items, examples["train"])
    tables = _tables(examples, data, items, config)
    with new_folder(output, overwrite=config.overwrite) as folder:
        rows: dict[str, dict[str, int]] = {}
        for (kind, split), (part, seed) in tables.items():
            path = folder / kind / f"{split}.parquet"
            rows.setdefault(kind, {})[split] = _write(path, kind, part, data, template, seed)
        items.write_parquet(folder / "items.parquet")
        manifest = {
            "format": FORMAT,
            "versions": {name: version(name) for name in ("dmpo-trl", "datasets", "numpy", "polars", "pyarrow")},
            "options": {k: v for k, v in asdict(config).items() if k not in ("output_dir", "overwrite")},
            "template": template.to_dict(),
            "source": {
                "files": [{"name": Path(file).name, "sha256": sha256(file)} for file in data.files],
                "read": data.read,
                "dropped": data.dropped,
                "changed": data.changed,
                "order": data.order,
            },
            "users": {
                "all": data.interactions["user"].n_unique(),
                **{split: part["user"].n_unique() for split, part in examples.items()},
            },
            "items": data.items.height,
            "interactions": data.interactions.height,
            "rows": rows,
            "files": {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*.parquet"))},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    logger.info("Prepared data in %s: %s", output, rows)
    return Prepared(output, manifest)


def _read(config: PrepareConfig) -> Interactions:
    if config.dataset == "movielens":
        return read_movielens(config.path, version=config.version, download=config.download)
    if config.dataset == "amazon":
        return read_amazon(config.path, category=config.category, release=config.release, download=config.download)
    if config.dataset == "lastfm":
        return read_lastfm(config.path, version=config.version, download=config.download)
    assert config.path is not None  # PrepareConfig checked it
    if config.dataset == "recbole":
        return read_recbole(config.path, title_field=config.title_field, year_field=config.year_field)
    return read_table(
        config.path,
        config.items,
        user=config.user_column,
        item=config.item_column,
        timestamp=config.timestamp_column,
        rating=config.rating_column,
        title=config.title_column,
    )


def _split(data: Interactions, config: PrepareConfig) -> dict[str, pl.DataFrame]:
    """Make examples of each part, their histories one item longer than in a prompt: the targets of SFT."""
    per_user = config.examples_per_user or None
    options: dict[str, Any] = {
        "min_rating": config.min_rating,
        "history_length": config.history_length + 1,
        "min_history": config.min_history,
        "per_user": per_user,
    }
    limits = {"validation": config.validation_users, "test": config.test_users}
    if config.split == "users":
        examples = next_items(data, **options)
        users = examples["user"].n_unique()
        sizes = {name: max(users // 10, 1) if size is None else size for name, size in limits.items()}
        train = users - sum(sizes.values()) if config.train_users is None else config.train_users
        if min(train, *sizes.values()) < 1:
            raise ValueError(f"{users} users have enough items, which leaves {train} to train on beside {sizes}.")
        parts = split_users(examples, {"train": train, **sizes}, seed=config.seed)
        for name in sizes:
            parts[name] = parts[name].unique("user", keep="last", maintain_order=True)
    else:
        if config.split == "leave_one_out":
            parts = split_leave_one_out(data, **options)
        else:
            parts = split_by_time(data, **options, validation_from=config.validation_from, test_from=config.test_from)
        for name, limit in limits.items():
            if limit is not None:
                parts[name] = few_shot(parts[name], limit, seed=config.seed)
    if config.few_shot_users is not None:
        parts["train"] = few_shot(parts["train"], config.few_shot_users, seed=config.seed)
    return parts


def _tables(
    examples: Mapping[str, pl.DataFrame], data: Interactions, items: pl.DataFrame, config: PrepareConfig
) -> dict[tuple[str, str], tuple[pl.DataFrame, int]]:
    """Return the examples of each dataset and split, with negatives, and the seed of their order.

    Popularity is that among the training users: the held-out items must not shape what the model learns to reject.
    """

    def draw(split: str, n: int, seed: int, strategy: str) -> pl.DataFrame:
        if strategy != "in_batch":
            return sample_negatives(
                examples[split], data, n, seed=seed, strategy=strategy, alpha=config.alpha, popularity=items
            )
        batches = _shuffled(examples[split], seed)
        return sample_negatives(batches, data, n, seed=seed, strategy=strategy, batch_size=config.batch_size)

    # Splits can have the same users, and then must not share their draws; neither must runs with other seeds
    train_seed, test_seed, validation_seed, loss_seed = range(4 * config.seed, 4 * config.seed + 4)
    train = draw("train", config.negatives, train_seed, config.negative_strategy)
    validation = draw("validation", config.negatives, loss_seed, config.negative_strategy)
    sft = _one_step_earlier(train) if config.sft_targets == "earlier" else train
    tables = {
        ("preference", "train"): (train, train_seed),
        ("preference", "validation"): (validation, loss_seed),
        ("sft", "train"): (sft, train_seed),
        ("sft", "validation"): (validation, loss_seed),
        ("ranking", "validation"): (
            draw("validation", config.candidates - 1, validation_seed, "uniform"),
            validation_seed,
        ),
        ("ranking", "test"): (draw("test", config.candidates - 1, test_seed, "uniform"), test_seed),
    }
    if config.pairs:
        tables |= {("pairs", split): tables["preference", split] for split in ("train", "validation")}
    shorter = pl.col("history").list.tail(config.history_length)
    return {name: (part.with_columns(shorter), seed) for name, (part, seed) in tables.items()}


def _shuffled(examples: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Shuffle the examples: in their own order, whole batches are of one user, who has had all the targets."""
    place = examples.select(pl.int_range(pl.len()).over("user")).to_series().to_numpy()
    return examples[uniform(seed, examples["user"], place, stream="batches").argsort(kind="stable")]


def _one_step_earlier(examples: pl.DataFrame) -> pl.DataFrame:
    """Make the last item of each history the target."""
    history = pl.col("history")
    long_enough = examples.filter(history.list.len() > 1)
    if left_out := examples.height - long_enough.height:
        logger.info("SFT goes without %d examples that have only one item of history", left_out)
    return long_enough.with_columns(target=history.list.last(), history=history.list.head(history.list.len() - 1))


def _write(
    path: Path, kind: str, examples: pl.DataFrame, data: Interactions, template: PromptTemplate, seed: int
) -> int:
    """Write one split of one dataset, and return its number of rows."""
    path.parent.mkdir(exist_ok=True)
    writer, rows = None, 0
    for table in text_tables(kind, examples, data, template, seed=seed):
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        rows += table.num_rows
    if writer is None:
        raise ValueError(f"No example is left for {path.stem} of {kind}; ask for more users or a shorter min_history.")
    writer.close()
    return rows


def _with_popularity(items: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Count how many users have each item in a training example; nothing that is evaluated on is counted."""
    pairs = pl.concat(
        part.select("user", item=pl.concat_list("history", "target")).explode("item").unique()
        for part in train.iter_slices(1_000_000)
    )
    popularity = pairs.unique().group_by("item").agg(popularity=pl.len().cast(pl.Int64))
    return (
        items.select("item", "title")
        .join(popularity, on="item", how="left", maintain_order="left")
        .with_columns(pl.col("popularity").fill_null(0))
    )
