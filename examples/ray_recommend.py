"""Recommendations on many machines: a Ray Data job whose workers each hold a `Recommender`.

    pip install '.[ray]'
    python examples/ray_recommend.py --model exported --users users.parquet --output recommendations --workers 2

`users.parquet` (a file, or a folder of them) has the columns `user` and `history`, a list of items from old to new,
and may have `seen`, a list of further items that are not recommended. The folder `recommendations` gets Parquet files
of `user`, `rank`, `item`, `title` and `score`, in any order of the users, and appears when all of them are written.

A worker that dies, alone or with its machine, is started again, and the users it had in hand are searched for again:
nobody is lost and nobody comes twice. A job that is killed as a whole begins anew; `dmpo-trl recommend`, which shares
users among processes under `accelerate launch`, goes on where it was. With `--address` the job runs on a Ray cluster,
whose machines all see the three paths.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import ray
import torch
from transformers import HfArgumentParser

from dmpo_trl.recommend import Recommender
from dmpo_trl.recommend.catalogue import Catalogue

SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)


@dataclass
class Settings:
    """What is searched for, and by how many."""

    model: str = field(metadata={"help": "Folder that `dmpo-trl export` or `Recommender.save_pretrained` wrote."})
    users: str = field(metadata={"help": "Parquet file or folder of user, history, and seen if you like."})
    output: Path = field(metadata={"help": "Folder to write; it must not exist."})
    k: int = field(default=10, metadata={"help": "Items per user."})
    num_beams: int = field(default=100, metadata={"help": "Title prefixes that a search follows at a time."})
    batch_size: int = field(default=8, metadata={"help": "Users searched together."})
    users_per_block: int = field(default=64, metadata={"help": "Users in hand of a worker, begun anew if it dies."})
    rows_per_file: int = field(default=100_000, metadata={"help": "Rows of a file of the output, at least."})
    workers: int = field(default=2, metadata={"help": "Recommenders at work at a time."})
    cpus_per_worker: int = field(default=1, metadata={"help": "Threads of each."})
    gpus_per_worker: float = field(default=0, metadata={"help": "GPUs of each: 1, or 0 for none."})
    address: str | None = field(default=None, metadata={"help": "Of a Ray cluster. Default: Ray on this machine."})


class Worker:
    """Recommends to batches of users; Ray makes one for each worker and keeps it."""

    def __init__(self, model: str, search: dict[str, Any]) -> None:
        self.recommender = Recommender.from_pretrained(model)
        self.recommender.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.search = search

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows of all users of a batch."""
        users = batch.to_pylist()
        names = [str(user["user"]) for user in users]
        histories, seen = ([list(map(str, user.get(name) or ())) for user in users] for name in ("history", "seen"))
        found = self.recommender.recommend_batch(histories, exclude=seen, **self.search)
        rows = [
            {"user": name, "rank": rank, "item": one.item, "title": one.title, "score": one.score}
            for name, own in zip(names, found, strict=True)
            for rank, one in enumerate(own, start=1)
        ]
        return pa.Table.from_pylist(rows, SCHEMA)


def check_users(settings: Settings) -> None:
    """Refuse users whom nothing can be recommended to, before anybody is searched for."""
    users = pl.scan_parquet(settings.users)
    bad = users.select("user", "history").filter(pl.any_horizontal(pl.all().is_null())).head(1).collect()
    if bad.height:
        raise SystemExit(f"{settings.users}: a row without user or history, {bad.row(0, named=True)}.")
    catalogue = Catalogue(pl.read_parquet(Path(settings.model) / "items.parquet"))
    for name in {"history", "seen"} & set(users.collect_schema()):
        items = users.select(
            pl.col(name).list.explode(empty_as_null=False).cast(pl.String).drop_nulls().unique()
        ).collect()
        catalogue.rows(items[name], name)


def main() -> None:
    """Check the users, share them out, and put the folder in place when it is complete."""
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    check_users(settings)
    unfinished = settings.output.absolute().with_name(f"{settings.output.name}.unfinished")
    if settings.output.exists():
        raise SystemExit(f"{settings.output} exists; name another --output, or delete it.")
    if unfinished.exists():
        raise SystemExit(f"{unfinished} exists: another job is writing it, or one was killed; then delete it.")
    unfinished.mkdir(parents=True)
    try:
        # On one machine, CPUs are counted for the workers and for those that read and write beside them
        own = {"num_cpus": settings.workers * settings.cpus_per_worker + 2, "include_dashboard": False}
        ray.init(**({"address": settings.address} if settings.address else own))
        users = ray.data.read_parquet(settings.users).repartition(target_num_rows_per_block=settings.users_per_block)
        users.map_batches(
            Worker,
            fn_constructor_args=(settings.model, {"k": settings.k, "num_beams": settings.num_beams}),
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=settings.workers),
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker,
        ).write_parquet(str(unfinished), min_rows_per_file=settings.rows_per_file)
        unfinished.rename(settings.output)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


if __name__ == "__main__":
    main()
