"""Training of a cell: SFT, SFT that goes on, and preference stages from the SFT adapter, at equal tokens."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import fast_dtype
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.modeling.loading import cast_adapter

from .language_models import model_name
from .methods import Method
from .settings import Settings, differences

Spent = dict[str, Any]
"""`tokens`, `seconds` and `steps` of a training, and what it logged (`log`)."""


def load(model: str, settings: Settings, adapter: Path | None = None, *, train: bool = False) -> Any:
    """Load the model: to be trained in float32 (perhaps under autocast), to be ranked in the machine's fast type."""
    options: dict[str, Any] = {"dtype": torch.float32 if train else fast_dtype()}
    if settings.four_bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    loaded = AutoModelForCausalLM.from_pretrained(model, **options)
    if adapter is None:
        return loaded
    adapted = PeftModel.from_pretrained(loaded, str(adapter), is_trainable=train)
    return adapted if train else cast_adapter(adapted)


def train_sft(
    model: str,
    data: Dataset,
    settings: Settings,
    seed: int,
    folder: Path,
    start: Path | None,
    tokens: int | None,
    *,
    whole: bool = True,
) -> Spent:
    """Train on what users had.

    Args:
        model: Folder of the base model.
        data: Columns `prompt`, `completion`.
        settings: Of the cell.
        seed: Of the order of rows and of the new adapter.
        folder: For the adapter.
        start: Adapter to go on with; None: a new one.
        tokens: How many to train on; None: `sft_epochs`.
        whole: Every title of a history is a target, not the completion alone.
    """
    trainer = SFTTrainer(
        model=load(model, settings, start, train=True),
        args=SFTConfig(
            **_arguments(
                settings,
                folder,
                seed,
                learning_rate=(start and settings.learning_rate) or settings.sft_learning_rate,
                **_unpadded(settings.sft_batch_size),
                num_train_epochs=settings.sft_epochs,
                completion_only_loss=not whole,
            )
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=None if start else lora(settings),
    )
    of_epoch = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    if tokens is not None:
        trainer.args.num_train_epochs = tokens / of_epoch
    made_with = settings.of_training(after_sft=start is not None)
    return _train(trainer, folder, model, made_with, round(of_epoch * trainer.args.num_train_epochs))


def train_preference(
    model: str,
    data: Dataset,
    settings: Settings,
    seed: int,
    folder: Path,
    start: Path | None,
    tokens: int,
    method: Method,
) -> Spent:
    """Train a preference stage.

    Args:
        model: Folder of the base model.
        data: Columns `prompt`, `chosen`, `rejected`.
        settings: Of the cell.
        seed: Of the order of rows and of a new adapter.
        folder: For the adapter.
        start: Adapter to go on with, the reference too; None: a new one.
        tokens: How many to train on.
        method: Its options.
    """
    trainer = DMPOTrainer(
        model=load(model, settings, start, train=True),
        args=DMPOConfig(
            **_arguments(
                settings,
                folder,
                seed,
                per_device_train_batch_size=settings.batch_size,
                train_sampling_strategy="group_by_prompt",
                **method.options | _set(learning_rate=settings.learning_rate, beta=settings.beta),
            )
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=None if start else lora(settings),
    )
    of_epoch = sum(int(batch["attention_mask"].sum()) for batch in trainer.get_train_dataloader())
    trainer.args.num_train_epochs = tokens / of_epoch
    return _train(trainer, folder, model, settings.of_training(after_sft=True), tokens)


def read_spent(folder: Path, model: str, made_with: dict[str, Any]) -> Spent | None:
    """Return what a training in this folder spent, None where none has ended there.

    Args:
        folder: Of the adapter.
        model: Folder of the base model.
        made_with: Its settings, `Settings.of_training`.

    Raises:
        SystemExit: It was trained with other settings, or is another model's.
    """
    file = folder / "spent.json"
    if not file.exists():
        return None
    spent: Spent = json.loads(file.read_text(encoding="utf-8"))
    there, name = spent.pop("settings"), model_name(model)
    if (trained := spent.pop("model", name)) != name:
        raise SystemExit(f"{folder} is of {trained}, not of {name}. Give another --work.")
    if other := differences(there, made_with):
        raise SystemExit(
            f"{folder} was trained with {other[0]}={there.get(other[0])}, now it is {made_with[other[0]]}. Give "
            "another --work, or delete the folder."
        )
    return spent


def lora(settings: Settings) -> LoraConfig:
    """Return the adapter that is trained."""
    rank = settings.lora_rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _unpadded(batch_size: int) -> dict[str, int]:
    """Return options that compute a step of SFT without padding: on a CPU row after row, of the same gradient."""
    if torch.cuda.is_available():
        return {"per_device_train_batch_size": batch_size}
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch_size}


def _arguments(settings: Settings, folder: Path, seed: int, **options: Any) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder.parent / "trainer"),
        "seed": seed,
        "bf16": fast_dtype() == torch.bfloat16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
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


def _set(**options: float) -> dict[str, float]:
    return {name: value for name, value in options.items() if value}


def _train(trainer: Any, folder: Path, model: str, made_with: dict[str, Any], tokens: int) -> Spent:
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.model.save_pretrained(folder, selected_adapters=["default"])
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    spent = {"tokens": tokens, "seconds": seconds, "steps": trainer.state.global_step, "log": log}
    # Written last: a cell that is killed while it ranks goes on there
    content = json.dumps(spent | {"settings": made_with, "model": model_name(model)})
    (folder / "spent.json").write_text(content, encoding="utf-8")
    return spent
