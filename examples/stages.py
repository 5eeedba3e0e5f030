"""What the examples have in common: two training stages in plain TRL, with one adapter, and the table at the end."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import Prepared
from dmpo_trl.evaluation import evaluate_model, markdown_table


@dataclass
class Training:
    """Model and training. The defaults run on a laptop's CPU."""

    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Hub id or folder of a chat model."}
    )
    results: str = field(default="outputs", metadata={"help": "Folder for the adapters `sft` and `dmpo`."})
    loss_type: str = field(default="dmpo", metadata={"help": "Or `softmax` (S-DPO), or any loss type of TRL's."})
    beta: float = 1.0
    train_batch_size: int = 8
    lora_rank: int = 16
    sft_learning_rate: float = 5e-4
    dmpo_learning_rate: float = 2e-4
    epochs: float = field(default=1, metadata={"help": "Of each stage."})


def load(model: str) -> AutoModelForCausalLM:
    """The base model; in float32, since CPUs without bf16 instructions are many times slower in half precision."""
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto" if torch.cuda.is_available() else torch.float32)


def train_sft(train: Dataset, settings: Training) -> str:
    """Teaches the task and its format. Returns the adapter's folder."""
    folder = str(Path(settings.results) / "sft")
    trainer = SFTTrainer(
        model=load(settings.model),
        # The titles of the history are as good a lesson as the one that came next, and cost nothing more
        args=SFTConfig(**_arguments(settings, folder, settings.sft_learning_rate), completion_only_loss=False),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        peft_config=LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(folder)
    return folder


def train_dmpo(train: Dataset, sft: str, settings: Training) -> str:
    """Continues the SFT adapter against the rejected items. Returns the adapter's folder."""
    folder = str(Path(settings.results) / "dmpo")
    trainer = DMPOTrainer(
        # A model that comes with an adapter: TRL keeps a frozen copy of it, named "ref", as the reference
        model=PeftModel.from_pretrained(load(settings.model), sft, is_trainable=True),
        args=DMPOConfig(
            **_arguments(settings, folder, settings.dmpo_learning_rate),
            beta=settings.beta,
            loss_type=[settings.loss_type],
        ),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(settings.model),
    )
    trainer.train()
    trainer.save_model(folder)
    return folder


def compare(prepared: Prepared, models: dict[str, str], settings: Training) -> str:
    """Ranks the test users' candidates with each model and with the baselines.

    Returns a Markdown table: means with 95% bootstrap intervals over users, then differences paired by user. It is
    also written to `table.md` in the results' folder.
    """
    users = prepared.ranking["test"]
    popularity = dict(prepared.items.select("item", "popularity").iter_rows())
    results = {}
    for name, model in models.items():
        ranked = evaluate_model(model, users, popularity)
        # Ranked by the mean log-prob a token: the sum favours short titles
        results |= {"random": ranked["random"], "popularity": ranked["popularity"], name: ranked["mean"]}
    rows = {name: result.intervals() for name, result in results.items()}
    for before, after in [*pairwise(models), ("popularity", list(models)[-1])]:
        rows[f"{after} - {before}"] = results[after].minus(results[before])
    table = f"{len(users)} test users\n\n{markdown_table(rows)}"
    (Path(settings.results) / "table.md").write_text(f"{table}\n", encoding="utf-8")
    return table


def _arguments(settings: Training, folder: str, learning_rate: float) -> dict:
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
        "save_strategy": "no",
        "report_to": "none",
    }
