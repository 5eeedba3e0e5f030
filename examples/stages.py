"""What the examples have in common: data, two training stages in plain TRL with one adapter, and the table."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer, TrlParser

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import PrepareConfig, Prepared, leak_report, prepare
from dmpo_trl.evaluation import (
    NO_HISTORY_WEIGHTS,
    NoHistoryRanker,
    RankingResult,
    choose_weight,
    full_catalogue,
    fuse,
    load_for_ranking,
    markdown_table,
    rank_beside_baselines,
)

VALIDATION_USERS = 100
"""At most so many choose a weight."""

CANDIDATES = {"uniform": "candidates drawn uniformly", "popularity": "candidates drawn by popularity"}


@dataclass
class Training:
    """Model and training. The defaults run on a laptop's CPU."""

    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Hub id or folder of a chat model."}
    )
    results: str = field(default="outputs", metadata={"help": "Folder for the adapters of the stages."})
    loss_type: str = field(default="dmpo", metadata={"help": "Or `softmax` (S-DPO), or any loss type of TRL's."})
    beta: float = 1.0
    train_batch_size: int = 8
    lora_rank: int = 16
    sft_learning_rate: float = 5e-4
    dmpo_learning_rate: float = 2e-4
    epochs: float = field(default=1, metadata={"help": "Of each stage."})
    catalogue_users: int = field(
        default=0,
        metadata={
            "help": "Rank this many test users among the whole catalogue too. Each model scores every title for each "
            "of them: minutes per user on a CPU with a catalogue of films."
        },
    )


class TimeLeft(TrainerCallback):
    """Says once, after five steps, how long the training will take."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how long the steps that are left will take."""
        if state.global_step == 5 < state.max_steps:
            seconds, left = (perf_counter() - self.start) / 5, state.max_steps - 5
            # On a line of its own, below the progress bar
            print(
                f"\n{seconds:.1f} s per step, steps left: {left}, about {seconds * left / 60:.1f} minutes", flush=True
            )


def prepare_data(**defaults: Any) -> tuple[Prepared, Training]:
    """Read the command line, prepare the raw files as it says, and look for leaks.

    Args:
        **defaults: An example's own defaults for options of [`PrepareConfig`] and [`Training`].

    Returns:
        The datasets, with a manifest of what was read, dropped and drawn, and the settings of the training.
    """
    parser = TrlParser((PrepareConfig, Training))
    parser.set_defaults_with_config(**{"candidate_strategy": ["uniform", "popularity"]} | defaults)
    config, settings = parser.parse_args_and_config()
    prepared = prepare(config)
    print(leak_report(prepared.preference["train"], prepared.ranking["test"]))
    return prepared, settings


def load(model: str) -> PreTrainedModel:
    """Load the base model; on a CPU in float32, as half precision is slow without bf16 instructions."""
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto" if torch.cuda.is_available() else torch.float32)


def train_sft(
    train: Dataset, settings: Training, adapter: str | None = None, name: str = "sft", **options: Any
) -> str:
    """Teach the task and its format: the chosen item after each history.

    Args:
        train: Columns `prompt` and `completion`.
        settings: Model and training.
        adapter: Folder of an adapter to go on with. By default a new one.
        name: Name of the adapter's folder in the results' folder.
        **options: More options of `SFTConfig`.

    Returns:
        The new adapter's folder, with what was logged in `trainer_state.json`.
    """
    folder = str(Path(settings.results) / name)
    model = load(settings.model)
    trainer = SFTTrainer(
        model=PeftModel.from_pretrained(model, adapter, is_trainable=True) if adapter else model,
        # The titles of the history are as good a lesson as the one that came next, and cost nothing more
        args=SFTConfig(
            **_arguments(settings, folder, settings.sft_learning_rate) | _unpadded(settings) | options,
            completion_only_loss=False,
        ),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        callbacks=[TimeLeft()],
        peft_config=None
        if adapter
        else LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(folder)
    trainer.save_state()
    return folder


def train_dmpo(train: Dataset, sft: str, settings: Training, name: str = "dmpo", **options: Any) -> str:
    """Continue the SFT adapter against the rejected items.

    Args:
        train: Columns `prompt`, `chosen` and `rejected`.
        sft: Folder of the adapter.
        settings: Model and training.
        name: Name of the adapter's folder in the results' folder.
        **options: More options of `DMPOConfig`.

    Returns:
        The new adapter's folder, with what was logged in `trainer_state.json`.
    """
    folder = str(Path(settings.results) / name)
    trainer = DMPOTrainer(
        # A model that comes with an adapter: TRL keeps a frozen copy of it, named "ref", as the reference
        model=PeftModel.from_pretrained(load(settings.model), sft, is_trainable=True),
        args=DMPOConfig(
            **_arguments(settings, folder, settings.dmpo_learning_rate) | options,
            beta=settings.beta,
            loss_type=[settings.loss_type],
        ),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        callbacks=[TimeLeft()],
    )
    trainer.train()
    # One adapter, without the reference's, so that plain peft loads the recommender and nothing else
    trainer.model.save_pretrained(folder, selected_adapters=["default"])
    trainer.processing_class.save_pretrained(folder)
    trainer.save_state()
    return folder


def logged(folder: str) -> list[dict[str, Any]]:
    """Return what a stage logged in its folder, one entry per logging step."""
    return [entry for entry in _state(folder)["log_history"] if "loss" in entry]  # the summary at the end has none


def tokens_computed(folder: str) -> float:
    """Return how many tokens a stage computed; a prefix that several rows of a batch share counts once.

    Steps after the last one that was logged count as much as those before it.
    """
    last = logged(folder)[-1]
    return last["num_tokens"] * _state(folder)["global_step"] / last["step"]


def compare(prepared: Prepared, models: dict[str, str], settings: Training) -> str:
    """Rank the test users' candidates with each model and with the baselines.

    Returns a Markdown table for each kind of candidates, the whole catalogue first where users are ranked in it: means
    with 95% bootstrap intervals over users, then differences paired by user. All are also written to `table.md` in
    the results' folder. How much of what a model says without a history is taken out is chosen on validation users.
    """
    kinds = {CANDIDATES[name]: splits["test"] for name, splits in prepared.protocols.items()}
    if settings.catalogue_users:
        users = prepared.ranking["test"]
        first = users.select(range(min(settings.catalogue_users, len(users))))
        kinds = {"the whole catalogue": full_catalogue(first, prepared.titles(), prepared.template)} | kinds
    results: dict[str, dict[str, RankingResult]] = {kind: {} for kind in kinds}
    weights = []
    for name, path in models.items():
        ranked, weight = _rank(name, path, prepared, kinds)
        weights.append(f"{weight:g} ({name})")
        for kind in kinds:
            results[kind] |= ranked[kind]
    tables = []
    for kind, own in results.items():
        rows: dict[str, Any] = {name: result.intervals() for name, result in own.items()}
        for before, after in [*pairwise(models), ("popularity", list(models)[-1])]:
            rows[f"{after} - {before}"] = own[after].minus(own[before])
        heading = (
            f"{len(kinds[kind])} test users, {kind}, ranked by the sum of the tokens' log-probs; what the model says "
            f"without a history is taken out with a weight of {', '.join(weights)}"
        )
        tables.append(f"{heading}\n\n{markdown_table(rows)}")
    table = "\n\n".join(tables)
    (Path(settings.results) / "table.md").write_text(f"{table}\n", encoding="utf-8")
    return table


def _rank(
    name: str, path: str, prepared: Prepared, kinds: dict[str, Dataset]
) -> tuple[dict[str, dict[str, RankingResult]], float]:
    """Rank each kind of candidates with a model and its baselines; return the weight of `no_history` too.

    The model ranks by the sum of the tokens' log-probs, which is what the losses train. Where titles are of very
    different lengths, that is mostly what it says without knowing the user: validation users decide how much of it
    to take out.
    """
    popularity = prepared.popularity()
    validation = prepared.ranking["validation"]
    asked = kinds | {"validation": validation.select(range(min(VALIDATION_USERS, len(validation))))}
    model, tokenizer = load_for_ranking(path)
    ranked = {kind: rank_beside_baselines(model, tokenizer, users, popularity) for kind, users in asked.items()}
    by_sum, weight = {kind: own["sum"] for kind, own in ranked.items()}, 0.0
    if prepared.template.candidates is None:  # else no prompt says nothing of the user
        ranker = NoHistoryRanker(model, tokenizer, prepared.template)
        anybody = {kind: ranker.rank(users) for kind, users in asked.items()}
        weight = choose_weight(by_sum["validation"], anybody["validation"], weights=NO_HISTORY_WEIGHTS)
        by_sum = {kind: fuse(own, anybody[kind], weight) for kind, own in by_sum.items()}
    return {
        kind: {"random": ranked[kind]["random"], "popularity": ranked[kind]["popularity"], name: by_sum[kind]}
        for kind in kinds
    }, weight


def _state(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))


def _unpadded(settings: Training) -> dict[str, Any]:
    """Return options that compute a step of as many rows without their padding: on a CPU, one after the other.

    The step's loss is the mean over the tokens of all of its rows, whichever way they are computed.
    """
    if torch.cuda.is_available():
        return {}
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": settings.train_batch_size}


def _arguments(settings: Training, folder: str, learning_rate: float) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_train_epochs": settings.epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": settings.train_batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "bf16": torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 5,
        "logging_first_step": True,  # so that the shortest run has something to show
        "save_strategy": "no",
    }
