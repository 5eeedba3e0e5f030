"""Scores of traditional recommenders, BPR, SASRec and GRU4Rec as RecBole has them, for the candidates of each user.

    .venv-traditional/bin/python benchmarks/paper/traditional/fit.py --method sasrec --folder FOLDER --seed 0

It runs in an environment of its own, which `make .venv-traditional` makes, on one core. It reads two files of FOLDER,

    known.parquet   user, item: identifiers; position: a number that puts each user's items in order
    users.parquet   user; history: list of items, the oldest first; items: list of the candidates to score

and writes two, the second when all is done:

    spent.json      method, seed, settings, seconds (also of the processor), steps, mean loss of the last epoch,
                    versions, and how many candidates and users were scored without the model
    scores.parquet  user, item, score: a finite number for each candidate, the higher the better

SASRec (arXiv 1808.09781) and GRU4Rec (arXiv 1511.06939) learn to predict each item of the known users from those
before it, by cross-entropy over all known items: with one sampled negative they look weaker than they are (arXiv
2402.06216). They score by a user's history, of which they see the last `max_length` items that some known user had.

BPR (arXiv 1205.2618) has a vector for each user that it was trained on, and the users to score are not among these.
They are folded in: the items' vectors stay as they are, and a vector of each of these users is trained on the history,
with the same loss, learning rate and epochs. Were all histories added to the known interactions instead, as is often
done, BPR would learn its items from hundreds of users where other methods have a few.

No model can score

    an item that no known user had: it gets 1 less than the lowest score of the user's other candidates, or 0 where
        there are no others; such items are tied
    for a user whose history has no item that a known user had (for BPR also one who had all of them): the score of a
        candidate is the number of known users who had it

All methods train for a fixed number of epochs, since a few users are too few to be split once more. `DEFAULTS` are
RecBole's but for the epochs, the size of batches and BPR's learning rate: the epochs are, of 5 to 50, those that
ranked 200 validation users of MovieLens 100K best after 32 known users, with one seed. Other data ask for others:
after 343 known users with all they rated, 10 did best for BPR.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

DEFAULTS: dict[str, dict[str, float]] = {
    "bpr": {"epochs": 50, "learning_rate": 5e-3, "batch_size": 128, "size": 64, "weight_decay": 0.0},
    "sasrec": {
        "epochs": 30,
        "learning_rate": 1e-3,
        "batch_size": 128,
        "size": 64,
        "layers": 2,
        "dropout": 0.5,
        "max_length": 50,
        "weight_decay": 0.0,
    },
    "gru4rec": {
        "epochs": 30,
        "learning_rate": 1e-3,
        "batch_size": 128,
        "size": 64,
        "layers": 1,
        "dropout": 0.3,
        "max_length": 50,
        "weight_decay": 0.0,
    },
}
HELP = {
    "epochs": "Passes over the known interactions.",
    "learning_rate": "Of Adam.",
    "batch_size": "Interactions in a batch.",
    "size": "Size of an item's vector; SASRec's layers are four times as wide inside, GRU4Rec's state twice.",
    "layers": "Layers of self-attention, or of the GRU. Not of BPR.",
    "dropout": "Share of numbers dropped in training. Not of BPR.",
    "max_length": "Most items of a history that count; no more than the longest history to score has. Not of BPR.",
    "weight_decay": "Weight of the squared parameters in the loss, as Adam has it.",
}
# Names of the model and of its settings in RecBole
MODELS = {"bpr": "BPR", "sasrec": "SASRec", "gru4rec": "GRU4Rec"}
NAMES = {
    "bpr": {"size": ["embedding_size"]},
    "sasrec": {
        "size": ["hidden_size"],
        "layers": ["n_layers"],
        "dropout": ["hidden_dropout_prob", "attn_dropout_prob"],
    },
    "gru4rec": {"size": ["embedding_size"], "layers": ["num_layers"], "dropout": ["dropout_prob"]},
}
INNER_SIZE = {"sasrec": ("inner_size", 4), "gru4rec": ("hidden_size", 2)}  # as in RecBole's defaults
COMMON_NAMES = {"batch_size": ["train_batch_size"], "max_length": ["MAX_ITEM_LIST_LENGTH"]}


def complete(method: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return all settings of a method: those given, and the defaults of the others.

    Raises:
        ValueError: There is no such method, or it has no such setting.
    """
    if method not in DEFAULTS:
        raise ValueError(f"There is no method {method!r}: choose among {', '.join(DEFAULTS)}.")
    if unknown := sorted(set(given) - set(DEFAULTS[method])):
        raise ValueError(f"{method} has no setting {', '.join(unknown)}; it has {', '.join(DEFAULTS[method])}.")
    return DEFAULTS[method] | {name: type(DEFAULTS[method][name])(value) for name, value in given.items()}


class Items:
    """The items that known users had, numbered from 0.

    Args:
        known: Columns `user` and `item`.
    """

    def __init__(self, known: pl.DataFrame) -> None:
        counts = known.unique(["user", "item"]).group_by("item").len("count").sort("item")
        self.numbers = counts.select("item", number=pl.int_range(pl.len()))
        self.counts = counts["count"].to_numpy().astype(float)
        self._number = dict(self.numbers.iter_rows())

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, history: Sequence[str]) -> list[int]:
        """Return the numbers of a history's items, in order, without those that no known user had."""
        return [self._number[item] for item in history if item in self._number]


class Training:
    """A model of RecBole's and what trains it, with RecBole's files in a folder of their own.

    Args:
        method: `bpr`, `sasrec` or `gru4rec`.
        histories: Numbers of the items of each user who is trained on, in order.
        items: How many items there are.
        settings: All settings of the method.
        seed: For the initial weights, the order of the batches, dropout and sampled negatives.
        folder: An empty folder.
    """

    def __init__(
        self,
        method: str,
        histories: Sequence[Sequence[int]],
        items: int,
        settings: Mapping[str, float],
        seed: int,
        folder: Path,
    ) -> None:
        from recbole.config import Config
        from recbole.data import create_dataset
        from recbole.data.dataloader import TrainDataLoader
        from recbole.sampler import Sampler
        from recbole.trainer import Trainer
        from recbole.utils import get_model, init_seed

        _write_for_recbole(folder, histories, items)
        names = COMMON_NAMES | NAMES[method]
        options = {option: value for name, value in settings.items() for option in names.get(name, [name])}
        if method in INNER_SIZE:
            name, times = INNER_SIZE[method]
            options[name] = times * int(settings["size"])
        if method != "bpr":
            options |= {"loss_type": "CE", "train_neg_sample_args": None}
        options |= {
            "data_path": str(folder.parent),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
            "checkpoint_dir": str(folder),
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
            "state": "WARNING",
        }
        config = Config(model=MODELS[method], dataset=folder.name, config_dict=options)
        init_seed(seed, reproducibility=True)
        dataset = create_dataset(config)
        self._dataset = dataset.build()[0]  # all of it: nothing is held out
        sampler = Sampler("train", self._dataset).set_phase("train") if method == "bpr" else None
        self._batches = TrainDataLoader(config, self._dataset, sampler, shuffle=True)
        self.model = get_model(config["model"])(config, self._dataset)
        self._trainer = Trainer(config, self.model)
        self.rows = self._rows("item_id", items)  # of each item, in the model's tables, (items,)

    def _rows(self, field: str, count: int) -> torch.Tensor:
        return torch.tensor(self._dataset.token2id(field, [str(number) for number in range(count)]))

    def user_rows(self, count: int) -> torch.Tensor:
        """Return the row of each user in the model's table, (count,)."""
        return self._rows("user_id", count)

    def run(self) -> tuple[int, float]:
        """Train, and return the number of steps and the mean loss of the last epoch."""
        self._trainer.fit(self._batches, saved=False, verbose=False)
        losses = self._trainer.train_loss_dict
        self.model.eval()
        return len(losses) * len(self._batches), losses[max(losses)] / len(self._batches)


def _write_for_recbole(folder: Path, histories: Sequence[Sequence[int]], items: int) -> None:
    """Write RecBole's atomic files. Users and items are numbers, whatever stands in their identifiers."""
    folder.mkdir()
    rows = [f"{user}\t{item}\t{place}" for user, own in enumerate(histories) for place, item in enumerate(own)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    (folder / f"{folder.name}.item").write_text("\n".join(["item_id:token", *map(str, range(items)), ""]))


def fit_sequential(
    method: str,
    known: Sequence[Sequence[int]],
    histories: Sequence[Sequence[int]],
    items: int,
    settings: Mapping[str, float],
    seed: int,
    folder: Path,
) -> tuple[np.ndarray, dict[str, float]]:
    """Train SASRec or GRU4Rec on the known users' items, and score all items after each history.

    Returns:
        Scores, (histories, items), and what was spent.
    """
    from recbole.data.interaction import Interaction

    longest = min(int(settings["max_length"]), max(map(len, histories)))
    training = Training(method, known, items, {**settings, "max_length": longest}, seed, folder / "known")
    steps, loss = training.run()
    seen = [training.rows[list(history[-longest:])] for history in histories]
    lengths = torch.tensor([len(own) for own in seen])
    padded = torch.nn.functional.pad(
        torch.nn.utils.rnn.pad_sequence(seen, batch_first=True), (0, longest - int(lengths.max()))
    )
    model, scores = training.model, []
    with torch.no_grad():
        for some, length in zip(padded.split(256), lengths.split(256), strict=True):
            found = model.full_sort_predict(Interaction({model.ITEM_SEQ: some, model.ITEM_SEQ_LEN: length}))
            scores.append(found.view(len(some), -1)[:, training.rows])
    return torch.cat(scores).numpy(), {"steps": steps, "loss": loss}


def fit_bpr(
    known: Sequence[Sequence[int]],
    histories: Sequence[Sequence[int]],
    items: int,
    settings: Mapping[str, float],
    seed: int,
    folder: Path,
) -> tuple[np.ndarray, dict[str, float]]:
    """Train BPR on the known users' items, fold the histories in, and score all items for each.

    Returns:
        Scores, (histories, items), and what was spent.
    """
    training = Training("bpr", known, items, settings, seed, folder / "known")
    steps, loss = training.run()
    of_items = training.model.item_embedding.weight.detach()[training.rows]
    folded = Training("bpr", histories, items, settings, seed, folder / "folded")
    with torch.no_grad():
        folded.model.item_embedding.weight[folded.rows] = of_items
    folded.model.item_embedding.requires_grad_(False)
    more_steps, _ = folded.run()
    of_users = folded.model.user_embedding.weight.detach()[folded.user_rows(len(histories))]
    return (of_users @ of_items.T).numpy(), {"steps": steps + more_steps, "loss": loss}


def score_candidates(users: pl.DataFrame, items: Items, scores: np.ndarray, scored: Sequence[int]) -> pl.DataFrame:
    """Look the candidates' scores up, and give those that the model has none for what the file's docstring says.

    Args:
        users: Columns `user` and `items`.
        items: The known items.
        scores: Of each user whom the model can score, of each known item, (scored, items).
        scored: Rows of these users in `users`.

    Returns:
        Columns `user`, `item`, `score` and `known`, whether a known user had the item.
    """
    place = np.full(len(users), -1)
    place[list(scored)] = np.arange(len(scored))
    asked = users.select("user", place=pl.Series(place), item="items").explode("item")
    asked = asked.join(items.numbers, on="item", how="left", maintain_order="left")
    number, known = asked["number"].fill_null(0).to_numpy(), asked["number"].is_not_null().to_numpy()
    value = items.counts[number]
    by_model = known & (asked["place"].to_numpy() >= 0)
    value[by_model] = scores[asked["place"].to_numpy()[by_model], number[by_model]]
    lowest = pl.col("score").filter("known").min().over("user")
    return asked.select("user", "item", score=value, known=known).with_columns(
        score=pl.when("known").then("score").otherwise((lowest - 1).fill_null(0))
    )


def fit(method: str, folder: Path, seed: int, settings: Mapping[str, float]) -> None:
    """Read the folder's two files, train, score, and write the two others.

    Raises:
        ValueError: Nothing can be learned from the known interactions.
    """
    start = time.perf_counter()
    torch.set_num_threads(1)
    known, users = pl.read_parquet(folder / "known.parquet"), pl.read_parquet(folder / "users.parquet")
    items = Items(known)
    ordered = known.sort("user", "position").group_by("user", maintain_order=True).agg("item")
    sequences = [items.of(own) for own in ordered["item"]]
    histories = [items.of(own) for own in users["history"]]
    if method == "bpr":
        sequences = [own for own in sequences if len(set(own)) < len(items)]  # of the others no item is a negative
    elif max(map(len, sequences), default=0) < 2:
        sequences = []  # nothing comes next
    if not sequences:
        needed = "has not had all of the items" if method == "bpr" else "has had two items"
        raise ValueError(f"{folder / 'known.parquet'}: {method} needs a user who {needed}, and there is none.")
    most = len(items) - 1 if method == "bpr" else np.inf
    scored = [row for row, own in enumerate(histories) if own and len(set(own)) <= most]
    scores, spent = np.zeros((0, len(items))), {"steps": 0, "loss": None}
    if scored:
        of_these = [histories[row] for row in scored]
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)  # where RecBole leaves logs
            try:
                arguments = (sequences, of_these, len(items), settings, seed, Path(scratch))
                scores, spent = fit_bpr(*arguments) if method == "bpr" else fit_sequential(method, *arguments)
            finally:
                os.chdir(here)
    found = score_candidates(users, items, scores, scored)
    if not found["score"].is_finite().all():
        raise ValueError(f"{method} diverged: scores are not finite. Lower the learning rate, {settings}.")
    made: dict[str, Any] = {"method": method, "seed": seed, "settings": dict(settings)}
    made |= {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time(), **spent}
    made |= {"candidates": len(found), "candidates no known user had": int((~found["known"]).sum())}
    made |= {"users": len(users), "users scored by popularity": len(users) - len(scored)}
    made["versions"] = {"python": sys.version.split()[0]} | {name: version(name) for name in ("recbole", "torch")}
    _replace(folder / "spent.json", lambda file: file.write_text(json.dumps(made, indent=1), encoding="utf-8"))
    _replace(folder / "scores.parquet", found.drop("known").write_parquet)


def _replace(file: Path, write: Any) -> None:
    """Write a file that appears under its name when it is complete."""
    part = file.with_name(file.name + ".part")
    write(part)
    part.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score candidates with BPR, SASRec or GRU4Rec.")
    parser.add_argument("--method", required=True, choices=list(DEFAULTS))
    parser.add_argument("--folder", required=True, type=Path, help="Folder of known.parquet and users.parquet.")
    parser.add_argument("--seed", required=True, type=int)
    for name, text in HELP.items():
        defaults = {method: own[name] for method, own in DEFAULTS.items() if name in own}
        shown = ", ".join(f"{value} ({method})" for method, value in defaults.items())
        parser.add_argument(f"--{name}", type=type(defaults["sasrec"]), help=f"{text} Default: {shown}.")
    given = vars(parser.parse_args())
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")  # of later pandas and torch
    method, folder, seed = given.pop("method"), given.pop("folder"), given.pop("seed")
    try:
        settings = complete(method, {name: value for name, value in given.items() if value is not None})
        fit(method, folder.resolve(), seed, settings)
    except ValueError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
