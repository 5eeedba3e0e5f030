"""Preparation pipeline: reads, splits, draws negatives and writes the datasets, by one configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ...writing import check_folder, checksums, new_folder, sha256, write_manifest
from .._columns import positions
from .._options import OptionError
from .._random import uniform
from ..datasets import text_tables
from ..examples import longest_histories, next_items
from ..filters import k_core
from ..interactions import Interactions
from ..item_splits import hold_out_items, only_items, split_items
from ..negatives import sample_negatives
from ..prompts import PromptTemplate
from ..readers import read_amazon, read_lastfm, read_movielens, read_recbole, read_table
from ..splits import few_shot, split_by_time, split_leave_one_out, split_users
from .config import PrepareConfig
from .folder import CARD, INTERACTIONS, PREPARED, Prepared, card, further_ranking

logger = logging.getLogger(__name__)

_MANY_TIES = 0.1


def prepare(config: PrepareConfig, data: Any = None, items: Any = None) -> Prepared:
    """Read raw files, split them, draw negatives, and write the datasets to a folder.

    The folder holds `preference` and `sft` (splits `train` and `validation`), `ranking` (`validation` and `test`), and
    `pairs` where asked for. It appears under its name when it is complete. The same options and raw files give the
    same bytes.

    Args:
        config: What to read, how to split it, and where to write.
        data: What to prepare instead of `config.path`: [`Interactions`], or a table in memory (polars, pandas or
            Arrow) whose columns the options of `config` name.
        items: A table in memory with the items and their titles, beside a table `data` that has none.

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

        A table in memory:

        >>> views = pl.DataFrame(seen, schema=["customer", "at", "film"], orient="row")
        >>> films = pl.DataFrame({"film": range(9), "name": [f"Film {film}" for film in range(9)]})
        >>> config = PrepareConfig(
        ...     dataset="table",
        ...     output_dir=f"{folder.name}/out2",
        ...     user_column="customer",
        ...     item_column="film",
        ...     timestamp_column="at",
        ...     title_column="name",
        ...     negatives=2,
        ...     candidates=3,
        ... )
        >>> prepare(config, data=views, items=films).manifest["rows"]["preference"]
        {'train': 7, 'validation': 1}
        >>> folder.cleanup()
    """
    template = config.prompt_template()
    source = _source(config, data, items)
    output = Path(config.output_dir)
    check_folder(output, PREPARED, overwrite=config.overwrite)  # before the work, not only after it
    data = data if isinstance(data, Interactions) else _read(config, *source)
    if config.k_core_users > 1 or config.k_core_items > 1:
        data = k_core(data, users=config.k_core_users, items=config.k_core_items)
    _say_ties(data)
    shares = {"validation": config.validation_items, "test": config.test_items}
    held_out = hold_out_items(data, shares, seed=config.seed) if config.split == "items" else {}
    pools = _pools(data, held_out, config)
    examples = _split(data, held_out, config)
    interactions = _training_interactions(
        pools["train"], examples["train"], whole_users=config.split in ("users", "items")
    )
    items = _with_popularity(data.items, interactions)
    tables = _tables(examples, pools, items, config)
    with new_folder(output, PREPARED, overwrite=config.overwrite) as folder:
        rows: dict[str, dict[str, int]] = {}
        for (kind, split), (part, seed) in tables.items():
            path = folder / kind / f"{split}.parquet"
            rows.setdefault(kind, {})[split] = _write(path, kind, part, data, template, seed)
        items.write_parquet(folder / "items.parquet")
        interactions.write_parquet(folder / INTERACTIONS)
        manifest: dict[str, Any] = {
            "format": PREPARED.format,
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
            "files": checksums(folder),
        }
        (folder / CARD).write_text(card(manifest), encoding="utf-8")
        manifest["files"][CARD] = sha256(folder / CARD)
        write_manifest(folder, manifest)
    return Prepared(output, manifest)


def _say_ties(data: Interactions) -> None:
    """Say how many users' last item is the last only by the order of the rows, since it has the time of another."""
    if data.order != "time":
        return
    times = data.interactions.group_by("user").agg(pl.col("timestamp").tail(2))["timestamp"].list
    tied = ((times.len() == 2) & (times.first() == times.last())).to_numpy().mean()
    if tied:
        logger.log(
            logging.WARNING if tied > _MANY_TIES else logging.INFO,
            "%.1f%% of the users had their last item at the same time as the one before it: which of the two is the "
            "last, and is tested, is the order of the rows in the file",
            100 * tied,
        )


def _source(config: PrepareConfig, data: Any, items: Any) -> tuple[Any, Any]:
    """Return what is to be read: what was given, or the paths among the options."""
    if data is None and config.dataset in ("table", "recbole") and not config.path:
        raise ValueError(f"dataset {config.dataset} needs `path`, the raw data.")
    if data is not None and (config.path or config.download):
        raise ValueError("Give either data, or what to read in the options `path` and `download`.")
    if isinstance(data, Interactions):
        if items is not None or config.items:
            raise ValueError("Interactions have their items already; give no others.")
    elif (data is not None or items is not None) and config.dataset != "table":
        raise ValueError(f"A table is prepared with dataset='table', not {config.dataset!r}.")
    return config.path if data is None else data, config.items if items is None else items


def _read(config: PrepareConfig, source: Any, items: Any) -> Interactions:
    if config.dataset == "movielens":
        return read_movielens(source, version=config.version, download=config.download)
    if config.dataset == "amazon":
        return read_amazon(source, category=config.category, release=config.release, download=config.download)
    if config.dataset == "lastfm":
        return read_lastfm(source, version=config.version, download=config.download)
    if config.dataset == "recbole":
        return read_recbole(
            source,
            title_field=config.title_field,
            year_field=config.year_field,
            user_field=config.user_field,
            item_field=config.item_field,
            timestamp_field=config.timestamp_field,
            rating_field=config.rating_field,
            order=config.order,
        )
    try:
        return read_table(
            source,
            items,
            user=config.user_column,
            item=config.item_column,
            timestamp=config.timestamp_column,
            rating=config.rating_column,
            title=config.title_column,
            separator=config.separator,
            encoding=config.encoding,
        )
    except OptionError as error:
        # The reader's `user` is the option user_column here
        own = {option.name for option in fields(config)}
        raise error.spelled(lambda name: f"`{name if name in own else f'{name}_column'}`") from error


def _pools(data: Interactions, held_out: Mapping[str, pl.Series], config: PrepareConfig) -> dict[str, Interactions]:
    """Return the items that each part's negatives and candidates are drawn from, with who had them.

    Held-out items are ranked among each other: nobody had any of them, so that only their titles tell them apart.
    """
    if not held_out:
        return dict.fromkeys(("train", "validation", "test"), data)
    every = pl.concat([data.items["item"], *held_out.values()])
    pools = {"train": every.filter(every.is_unique()), **held_out}
    for name, own in held_out.items():
        most = max(config.candidates, config.negatives + 1) if name == "validation" else config.candidates
        if len(own) < most:
            raise ValueError(
                f"{name}_items={getattr(config, f'{name}_items')} are {len(own)} items, too few for {most} in a "
                f"ranking; raise {name}_items, or lower candidates or negatives."
            )
    return {name: only_items(data, own) for name, own in pools.items()}


def _split(data: Interactions, held_out: Mapping[str, pl.Series], config: PrepareConfig) -> dict[str, pl.DataFrame]:
    """Make examples of each part. Histories that do not grow have one item more than a prompt: the target of SFT."""
    growing = config.history == "growing"
    options: dict[str, Any] = {
        "min_rating": config.min_rating,
        "history_length": config.history_length + (not growing),
        "min_history": config.min_history,
        "per_user": config.examples_per_user or None,
        "growing": growing,
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
    else:
        if config.split == "items":
            parts = split_items(data, held_out, **options)
        elif config.split == "leave_one_out":
            parts = split_leave_one_out(data, **options)
        else:
            parts = split_by_time(data, **options, validation_from=config.validation_from, test_from=config.test_from)
        for name, limit in limits.items():
            if limit is not None:
                parts[name] = few_shot(parts[name], limit, seed=config.seed)
    for name in limits:  # who is ranked is asked once: intervals and tests are over users
        parts[name] = parts[name].unique("user", keep="last", maintain_order=True)
    if config.few_shot_users is not None:
        parts["train"] = few_shot(parts["train"], config.few_shot_users, seed=config.seed)
    return parts


def _tables(
    examples: Mapping[str, pl.DataFrame], pools: Mapping[str, Interactions], items: pl.DataFrame, config: PrepareConfig
) -> dict[tuple[str, str], tuple[pl.DataFrame, int]]:
    """Return the examples of each dataset and split, with negatives, and the seed of their order.

    Popularity is that among the training users: the held-out items must not shape what the model learns to reject.
    """

    def draw(split: str, n: int, seed: int, strategy: str, called: str = "negatives (`negatives`)") -> pl.DataFrame:
        pool = pools[split]
        if strategy != "in_batch":
            return sample_negatives(
                *(examples[split], pool, n),
                seed=seed,
                strategy=strategy,
                alpha=config.alpha,
                popularity=items,
                called=called,
            )
        batches = _shuffled(examples[split], seed)
        return sample_negatives(batches, pool, n, seed=seed, strategy=strategy, batch_size=config.batch_size)

    # Splits can have the same users, and then must not share their draws; neither must runs with other seeds
    train_seed, test_seed, validation_seed, loss_seed = range(4 * config.seed, 4 * config.seed + 4)
    train = draw("train", config.negatives, train_seed, config.negative_strategy)
    # Held-out items have no popularity
    strategy = "uniform" if config.split == "items" else config.negative_strategy
    validation = draw("validation", config.negatives, loss_seed, strategy)
    if config.history == "growing":
        sft = longest_histories(train)
    else:
        sft = _one_step_earlier(train) if config.sft_targets == "earlier" else train

    tables = {
        ("preference", "train"): (train, train_seed),
        ("preference", "validation"): (validation, loss_seed),
        ("sft", "train"): (sft, train_seed),
        ("sft", "validation"): (validation, loss_seed),
    }
    called = "candidates beside the target (`candidates`)"
    for place, strategy in enumerate(config.candidate_strategy):
        for split, seed in (("validation", validation_seed), ("test", test_seed)):
            candidates = draw(split, config.candidates - 1, seed, strategy, called)
            tables["ranking" if place == 0 else further_ranking(strategy), split] = candidates, seed
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
    kind = kind.partition("_")[0]  # ranking_popularity is a ranking
    for table in text_tables(kind, examples, data, template, seed=seed):
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        rows += table.num_rows
    if writer is None:
        raise ValueError(f"No example is left for {path.stem} of {kind}; ask for more users or a shorter min_history.")
    writer.close()
    return rows


def _training_interactions(data: Interactions, train: pl.DataFrame, *, whole_users: bool) -> pl.DataFrame:
    """Select what counts may know: the interactions of the training users, and nothing that is evaluated on.

    Args:
        data: The interactions.
        train: The training examples, those of a user from old to new.
        whole_users: Whether all interactions of these users count; else those up to a user's last training target.

    Returns:
        Columns `user`, `item` and `shown`: whether it is in a training example, so that the model sees it.
    """
    last = train.unique("user", keep="last", maintain_order=True)
    rank = positions(data.interactions["user"], last["user"])
    counted = rank >= 0
    if not whole_users:
        target = positions(last["target"], data.items["item"])
        is_target = counted & (positions(data.interactions["item"], data.items["item"]) == target[rank])
        place = np.zeros(last.height, np.int64)
        place[rank[is_target]] = np.flatnonzero(is_target)
        counted &= np.arange(len(rank)) <= place[rank]
    shown = pl.concat(
        part.select("user", item=pl.concat_list("history", "target")).explode("item").unique()
        for part in train.iter_slices(1_000_000)
    )
    pairs = data.interactions.select(pl.col("user", "item").filter(pl.Series(counted)).cast(pl.String))
    shown = shown.unique().with_columns(shown=True)
    return pairs.join(shown, on=["user", "item"], how="left", maintain_order="left").with_columns(
        pl.col("shown").fill_null(False)
    )


def _with_popularity(items: pl.DataFrame, interactions: pl.DataFrame) -> pl.DataFrame:
    """Count how many of the training users have had each item, liked or not."""
    popularity = interactions.group_by("item").agg(popularity=pl.len().cast(pl.Int64))
    return (
        items.select("item", "title")
        .join(popularity, on="item", how="left", maintain_order="left")
        .with_columns(pl.col("popularity").fill_null(0))
    )
