"""What a preference stage adds to SFT: few training users, equal tokens, the same candidates, several seeds.

    python benchmarks/learning.py --dataset movielens
    python benchmarks/learning.py --dataset office --data FOLDER

Of each seed other users are trained on; those who are ranked stay the same. Every stage after SFT begins from the same
adapter and is given as many tokens as "sft more", which is SFT going on; tokens are those computed (a prefix that a
batch shares counts once). A cell is one method with one seed, a JSON file of every user's rank and of what was spent;
cells that exist are not computed again, so the script can be killed and started anew. `learning_report.py` makes the
tables.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from datasets import Dataset
from machine import ROOT, describe
from models import default_model, movielens_folder
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import (
    MOVIES,
    PRODUCTS,
    Interactions,
    PromptTemplate,
    few_shot,
    leave_one_out,
    longest_histories,
    next_items,
    preference_dataset,
    ranking_dataset,
    read_recbole,
    sample_negatives,
    split_users,
)
from dmpo_trl.evaluation import (
    ItemKNN,
    RankingResult,
    choose_weight,
    fuse,
    rank_at_random,
    rank_by_item_knn,
    rank_by_log_prob,
    rank_by_popularity,
    score_candidates,
)

TEMPLATES = {"movielens": MOVIES, "office": PRODUCTS}
MIN_RATING = {"movielens": 4.0, "office": None}  # what counts as liked
# What is trained after SFT: options of `DMPOConfig`, and the number of negatives
STAGES: dict[str, tuple[dict[str, Any], int]] = {
    "dmpo": ({"loss_type": ["dmpo"], "beta": 1.0, "learning_rate": 2e-4}, 3),
    "dmpo boundary": (
        {"loss_type": ["dmpo"], "beta": 1.0, "learning_rate": 2e-4, "negative_selection": "boundary"},
        3,
    ),
    "softmax": ({"loss_type": ["softmax"], "beta": 1.0, "learning_rate": 2e-4}, 3),
    "mppo": ({"loss_type": ["mppo"], "learning_rate": 2e-4}, 3),
    "sampled softmax 3": ({"loss_type": ["sampled_softmax"], "beta": 0.2, "learning_rate": 4e-4}, 3),
    "sampled softmax 15": ({"loss_type": ["sampled_softmax"], "beta": 0.2, "learning_rate": 4e-4}, 15),
    "dmpo 15": ({"loss_type": ["dmpo"], "beta": 1.0, "learning_rate": 2e-4}, 15),
    "dmpo + sft": (
        {"loss_type": ["dmpo", "sft"], "loss_weights": [1.0, 0.5], "beta": 1.0, "learning_rate": 2e-4},
        3,
    ),
}
METRICS = ("hr@1", "hr@5", "ndcg@5", "auc")
METHODS = ("counts", "zero-shot", "sft", "sft more", *STAGES)


@dataclass
class Settings:
    dataset: str = field(metadata={"help": "What is recommended.", "choices": list(TEMPLATES)})
    data: Path | None = field(default=None, metadata={"help": "Folder of the raw files. Default: MovieLens 100K."})
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}."})
    seeds: int = 3
    first_seed: int = 0
    users: int = field(default=32, metadata={"help": "Training users."})
    test_users: int = 400
    validation_users: int = field(default=200, metadata={"help": "Kept apart; 100 of them choose a fusion's weight."})
    positions: int = field(default=20, metadata={"help": "Training examples per user, the latest ones."})
    history_length: int = 24
    min_history: int = 5
    candidates: int = 20
    tokens: int = field(default=50_000, metadata={"help": "Tokens of each stage after SFT."})
    sft_epochs: float = 10
    sft_learning_rate: float = 5e-4
    batch_size: int = 20
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    bf16: bool = field(default=False, metadata={"help": "Train under autocast and rank in bf16, where it is fast."})
    work: Path = field(default=ROOT / "outputs" / "learning", metadata={"help": "Folder for adapters."})
    output: Path = field(default=ROOT / "benchmarks" / "results" / "learning", metadata={"help": "Folder for cells."})


@dataclass
class Users:
    """The users of one seed."""

    settings: Settings
    data: Interactions
    seed: int

    @cached_property
    def groups(self) -> dict[str, pl.DataFrame]:
        """The last target of every user who may be ranked or trained on, by group; ranked are always the same."""
        last = leave_one_out(
            self.data,
            min_rating=MIN_RATING[self.settings.dataset],
            history_length=self.settings.history_length,
            min_history=2,
        )
        sizes = {"test": self.settings.test_users, "validation": self.settings.validation_users}
        ranked = split_users(last, sizes, seed=0)
        others = last.join(pl.concat(list(ranked.values())), on="user", how="anti", maintain_order="left")
        return ranked | {"train": few_shot(others, self.settings.users, seed=self.seed)}

    @cached_property
    def examples(self) -> pl.DataFrame:
        """Growing histories of the training users."""
        examples = next_items(
            self.data,
            min_rating=MIN_RATING[self.settings.dataset],
            history_length=self.settings.history_length,
            min_history=self.settings.min_history,
            per_user=self.settings.positions,
            growing=True,
        )
        return examples.join(self.groups["train"], on="user", how="semi", maintain_order="left")

    @cached_property
    def shown(self) -> pl.DataFrame:
        """The interactions that the model sees."""
        return self.examples.select("user", item=pl.concat_list("history", "target")).explode("item").unique()

    @cached_property
    def all_of_them(self) -> pl.DataFrame:
        """All interactions of the training users."""
        return self.data.interactions.cast({"user": pl.String, "item": pl.String}).join(
            self.groups["train"], on="user", how="semi"
        )

    def sft(self) -> Dataset:
        longest = longest_histories(self.examples)
        rows = preference_dataset(longest.with_columns(negatives=[]), self.data, self.template)
        return rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")

    def preference(self, negatives: int) -> Dataset:
        drawn = sample_negatives(self.examples, self.data, negatives, seed=self.seed)
        return preference_dataset(drawn, self.data, self.template)

    def ranking(self, group: str) -> Dataset:
        drawn = sample_negatives(self.groups[group], self.data, self.settings.candidates - 1, seed=1000)
        return ranking_dataset(drawn, self.data, self.template, seed=1000)

    @property
    def template(self) -> PromptTemplate:
        return TEMPLATES[self.settings.dataset]


def read(settings: Settings) -> Interactions:
    if settings.dataset == "movielens":
        return read_recbole(settings.data or movielens_folder(), title_field="movie_title")
    if settings.data is None:
        raise SystemExit("--dataset office needs --data, the folder of MSL's files.")
    from dmpo_trl.data.published import read_msl

    published = read_msl(settings.data)
    latest = published.examples["train"].unique("user", keep="last", maintain_order=True)
    windows = latest.select("user", item=pl.concat_list("history", "target"))
    rows = windows.with_columns(timestamp=pl.int_ranges(pl.col("item").list.len())).explode("item", "timestamp")
    return Interactions(rows, published.interactions.items, order="position")


def load(settings: Settings, adapter: Path | None = None, *, train: bool = False) -> Any:
    """Load the model: to be trained in float32 (with `bf16` under autocast), to be ranked with `bf16` in bfloat16."""
    dtype = torch.bfloat16 if settings.bf16 and not train else torch.float32
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter), is_trainable=train)


def arguments(settings: Settings, seed: int, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(settings.work / "trainer"),
        "seed": seed,
        "bf16": settings.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "max_length": None,
        "logging_steps": 5,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        **options,
    }


def train_sft(settings: Settings, users: Users, adapter: Path | None, folder: Path, tokens: int | None) -> Any:
    """Train on the longest history of each user, every title of which is a target; `tokens` None: `sft_epochs`."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    trainer = SFTTrainer(
        model=load(settings, adapter, train=True),
        args=SFTConfig(
            **arguments(
                settings,
                users.seed,
                learning_rate=settings.sft_learning_rate,
                per_device_train_batch_size=8,
                num_train_epochs=settings.sft_epochs,
                completion_only_loss=False,
            )
        ),
        train_dataset=users.sft(),
        processing_class=tokenizer,
        peft_config=None if adapter else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    of_epoch = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    if tokens is not None:
        trainer.args.num_train_epochs = tokens / of_epoch
    return _train(trainer, folder, round(of_epoch * trainer.args.num_train_epochs))


def train_preference(settings: Settings, users: Users, adapter: Path, folder: Path, name: str) -> Any:
    options, negatives = STAGES[name]
    trainer = DMPOTrainer(
        model=load(settings, adapter, train=True),
        args=DMPOConfig(
            **arguments(
                settings,
                users.seed,
                per_device_train_batch_size=settings.batch_size,
                train_sampling_strategy="group_by_prompt",
                **options,
            )
        ),
        train_dataset=users.preference(negatives),
        processing_class=AutoTokenizer.from_pretrained(settings.model),
    )
    of_epoch = sum(int(batch["attention_mask"].sum()) for batch in trainer.get_train_dataloader())
    trainer.args.num_train_epochs = settings.tokens / of_epoch
    return _train(trainer, folder, settings.tokens)


def _train(trainer: Any, folder: Path, tokens: int) -> dict[str, Any]:
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.model.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    spent = {"tokens": tokens, "seconds": seconds, "steps": trainer.state.global_step, "log": log}
    # A cell that is killed while it ranks goes on there
    (folder / "spent.json").write_text(json.dumps(spent), encoding="utf-8")
    return spent


def rank(settings: Settings, users: Users, model: Any, name: str) -> dict[str, RankingResult]:
    """Rank the test users, alone and with the counts of the interactions that the model saw."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    knn = ItemKNN(users.shown)
    results: dict[str, RankingResult] = {}
    found = {}
    for group in ("validation", "test"):
        dataset = users.ranking(group)
        if group == "validation":
            dataset = dataset.take(min(100, len(dataset)))  # enough to choose a weight, and half the time
        scored = score_candidates(model, tokenizer, dataset)
        found[group] = rank_by_log_prob(dataset, scored, score="sum", name=name), rank_by_item_knn(dataset, knn)
        results[f"{group} sum"] = found[group][0]
        results[f"{group} mean"] = rank_by_log_prob(dataset, scored, score="mean", name=name)
    weight = choose_weight(*found["validation"])
    results["test fused"] = fuse(*found["test"], weight, name=f"{name} + {weight:g} item knn")
    return results


def as_cell(results: dict[str, RankingResult]) -> dict[str, Any]:
    """Return metrics, each test user's rank of the target (the mean of its places where it is tied), and the gap."""
    cell: dict[str, Any] = {}
    for name, result in results.items():
        pairs = list(zip(result.scores, result.positives, strict=True))
        cell[name] = {"ranker": result.name}
        cell[name] |= {metric: float(result.per_user(metric).mean()) for metric in METRICS}
        gaps = [float(own[positive] - np.delete(own, positive).max()) for own, positive in pairs]
        cell[name]["mean gap to the hardest"] = float(np.mean(gaps))
        if not name.startswith("validation"):
            cell[name]["ndcg@5 per user"] = result.per_user("ndcg@5").round(4).tolist()
            cell[name]["ranks"] = [
                1 + int((own > own[positive]).sum()) + (int((own == own[positive]).sum()) - 1) / 2
                for own, positive in pairs
            ]
    return cell


def cells(settings: Settings) -> Iterator[tuple[str, int, Path, Callable[[], dict[str, Any]]]]:
    """Yield each cell that is wanted: method, seed, file, and what computes it."""
    data = read(settings)
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        users = Users(settings, data, seed)
        for method in settings.methods:
            name = f"{settings.dataset}-{settings.users}-{method.replace(' ', '-')}-{seed}.json"
            yield (
                method,
                seed,
                settings.output / name,
                lambda users=users, method=method: compute(settings, users, method),
            )


def adapter_of(settings: Settings, users: Users, method: str) -> Path:
    return settings.work / f"{settings.dataset}-{settings.users}-{users.seed}" / method.replace(" ", "-")


def compute(settings: Settings, users: Users, method: str) -> dict[str, Any]:
    torch.manual_seed(users.seed)
    if method == "counts":
        dataset = users.ranking("test")
        results = {"random": rank_at_random(dataset)}
        for suffix, counted in (("", users.shown), (", all interactions", users.all_of_them)):
            popularity = dict(counted.group_by("item").len().iter_rows())
            results[f"popularity{suffix}"] = rank_by_popularity(dataset, popularity)
            results[f"item knn{suffix}"] = rank_by_item_knn(dataset, ItemKNN(counted))
        return as_cell(results)
    folder, spent = adapter_of(settings, users, method), {}
    if method == "zero-shot":
        model = load(settings)
    else:
        sft = adapter_of(settings, users, "sft")
        if method != "sft" and not (sft / "adapter_config.json").exists():
            raise SystemExit(f"{sft} is missing: run the method sft first, or delete its cell.")
        if (folder / "spent.json").exists():
            spent = json.loads((folder / "spent.json").read_text(encoding="utf-8"))
        elif method == "sft":
            spent = train_sft(settings, users, None, folder, None)
        elif method == "sft more":
            spent = train_sft(settings, users, sft, folder, settings.tokens)
        else:
            spent = train_preference(settings, users, sft, folder, method)
        model = load(settings, folder)
    start = time.perf_counter()
    results = rank(settings, users, model, method)
    return as_cell(results) | {"training": spent, "seconds of ranking": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if unknown := sorted(set(settings.methods) - set(METHODS)):
        raise SystemExit(f"Unknown --methods {unknown}: choose among {list(METHODS)}.")
    settings.model = settings.model or default_model()
    settings.output.mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells(settings) if not cell[2].exists()]
    for number, (method, seed, file, compute_cell) in enumerate(waiting):
        start = time.perf_counter()
        cell = compute_cell()
        seconds = time.perf_counter() - start
        head = {"method": method, "seed": seed, "options": STAGES.get(method, ({}, 0))[0]}
        about = describe("trl", "peft") | {"model": Path(settings.model).name}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
        for name in ("work", "output", "data", "model", "methods"):
            plain.pop(name)
        text = json.dumps(head | {"settings": plain} | about | {"seconds": seconds} | cell)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(file)
        figure = cell.get("test sum", cell.get("item knn", {})).get("ndcg@5", math.nan)
        left = (len(waiting) - number - 1) * seconds / 60
        print(f"{file.name}: NDCG@5 {figure:.3f}, {seconds:.0f} s; about {left:.0f} minutes left", flush=True)


if __name__ == "__main__":
    main()
