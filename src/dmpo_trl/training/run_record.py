"""Run records: what makes a run, written beside each checkpoint and compared with the run that resumes from it."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import TrainingArguments
from trl import DPOConfig

from ..config import option
from ..modeling.fingerprint import all_here, config_of, hash_of, plain, weight_buffers
from ..modeling.loading import base_model_of
from ..preprocessing.format import REFERENCE_COLUMNS, TOKEN_COLUMNS, VALUE_COLUMNS
from .checkpoints import FILE_LIST, has_optimizer

logger = logging.getLogger(__name__)

RECORD = "dmpo_run.json"

# Options of TRL's and our configuration that change neither the loss nor the rows of a step. What `pad_token` and
# `model_init_kwargs` change is compared itself
_WITHOUT_EFFECT = {
    "activation_offloading",
    "allow_changed_run",
    "dataset_num_proc",
    "max_tokens_per_batch",  # of the data
    "min_groups_per_step",  # of the data
    "model_init_kwargs",
    "pad_to_multiple_of",
    "pad_token",
    "padding_free",
    "precompute_ref_batch_size",
    "precompute_ref_log_probs",
    "prefix_sharing",
    "trust_remote_code",
}
# Options of transformers that change something, by what they change
_OF_TRANSFORMERS = {
    "objective": ("label_smoothing_factor", "neftune_noise_alpha"),
    "data": ("dataloader_drop_last", "train_sampling_strategy"),
    "form": ("optim", "optim_args"),
    "optimizer": ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    "other": ("bf16", "fp16", "gradient_checkpointing", "lr_scheduler_type", "max_grad_norm", "warmup_steps"),
}
# Options of an adapter that say where it comes from
_PLACES = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision")
_PACKAGES = ("dmpo-trl", "trl", "transformers", "torch", "peft", "accelerate", "datasets")
_BATCH = 1_000  # rows, of which each may hold images
_HASH = "hash "
_UNKNOWN = "hash of sharded weights"


def describe_models(model: Any, ref_model: Any, optimizer: Any = None) -> dict[str, dict[str, Any]]:
    """Describe the weights that a checkpoint does not hold, and the form of those that it does.

    To be called before the models are sharded or trained. Sharded weights have no hash, and are not compared.

    Args:
        model: The policy.
        ref_model: The reference; None where it is the initial policy, or the policy without its adapter.
        optimizer: That given to the trainer; None for the one that `optim` names.

    Returns:
        Entries of a record's parts "objective" and "form".
    """
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in trainable.items()}  # ZeRO-3
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    objective: dict[str, Any] = {"adapter": None, "config of the model": _hash_of(config_of(model))}
    if ref_model is not None or not is_peft_model(model):
        reference = model if ref_model is None else ref_model
        objective["weights of the reference"] = _weights_hash(reference, dict(reference.named_parameters()))
    if is_peft_model(model):
        # Where the reference is the model without its adapter, or with a copy of that which it began with, its weights
        # are among these
        objective["weights of the base model"] = _weights_hash(model, frozen)
        for adapter in model.peft_config.values():
            options = json.loads(json.dumps(adapter.to_dict(), default=plain))
            objective["adapter"] = options["peft_type"]
            objective |= {f"adapter's {name}": value for name, value in options.items() if name not in _PLACES}
    form = {
        "trainable weights": f"{sum(map(math.prod, shapes.values())):,} of {type(base_model_of(model)).__name__}",
        "names and shapes of the trainable weights": _hash_of(shapes),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
    }
    return {"objective": objective, "form": form}


def _hash_of(value: Any) -> str:
    return f"{_HASH}{hash_of(value)}"


def _hash(buffers: Iterable[Any]) -> str:
    return f"{_HASH}{Hasher.hash_bytes(buffers)}"


def _weights_hash(model: Any, weights: Mapping[str, Any]) -> str:
    """Hash a model's config and some of its weights."""
    if not all_here(weights.values()):
        return _UNKNOWN

    def parts() -> Iterator[Any]:
        yield _hash_of(config_of(model)).encode()
        yield from weight_buffers(weights)

    return _hash(parts())


def describe_run(
    args: DPOConfig, models: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Any], examples_per_step: int
) -> dict[str, Any]:
    """Describe what makes a run, in parts that differ in what a change of them does.

    Args:
        args: The training arguments.
        models: What [`describe_models`] returned.
        rows: What [`describe_rows`] returned for the training dataset.
        examples_per_step: Of all processes, accumulated.

    Returns:
        A record that JSON gives back as it is: the parts "objective" and "data", whose change makes another run;
        "form", whose change makes the checkpoint impossible to load; "optimizer", which the checkpoint overrules;
        "other" and "versions".
    """
    options = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    record: dict[str, dict[str, Any]] = {
        part: {name: getattr(args, name) for name in names} for part, names in _OF_TRANSFORMERS.items()
    }
    record["objective"] |= {name: getattr(args, name) for name in sorted(options - _WITHOUT_EFFECT)}
    record["data"] |= {**_order(args, examples_per_step), **rows}
    record["versions"] = {name: _version(name) for name in _PACKAGES}
    for part, entries in models.items():
        record[part] |= entries
    return json.loads(json.dumps(record, default=str))


def _order(args: DPOConfig, examples_per_step: int) -> dict[str, Any]:
    """Return what decides which rows make a step."""
    max_tokens = option(args, "max_tokens_per_batch")
    found = {
        "seed of the data": args.seed if args.data_seed is None else args.data_seed,
        "max_tokens_per_batch": max_tokens,
    }
    if args.train_sampling_strategy == "group_by_prompt" and max_tokens is None:
        found["min_groups_per_step"] = option(args, "min_groups_per_step")
    if not args.auto_find_batch_size:
        found["examples per step"] = examples_per_step
        if max_tokens is not None or args.train_sampling_strategy == "group_by_prompt":
            # Batches are formed before they are shared out
            found["per_device_train_batch_size"] = args.per_device_train_batch_size
    return found


def describe_rows(dataset: Any, *, has_reference: bool | str = False) -> dict[str, Any]:
    """Describe the training dataset: the number of its rows, and a hash of their tokens, in their order.

    datasets' own fingerprint is random for a dataset in memory, and that of a file changes with its path. Of rows
    with images all columns are hashed; of a stream, which is not read here, nothing is known.

    Args:
        dataset: Tokenised examples.
        has_reference: Whether the reference's log-probs came with the dataset. Those that the trainer computed are not
            hashed: another device rounds in another way. Nor are those of which a text says here what they are of.

    Returns:
        Entries of a record's part "data", the same in every process and wherever the rows are stored.

    Example:
        >>> rows = {"prompt_ids": [[1, 2]], "chosen_ids": [[3]], "rejected_ids": [[[4], [5]]]}
        >>> describe_rows(Dataset.from_dict(rows)) == describe_rows(Dataset.from_dict(rows))
        True
    """
    if not isinstance(dataset, Dataset):
        return {"rows": "a stream"}
    names = set(dataset.column_names)
    if set(TOKEN_COLUMNS) <= names:
        names &= {*TOKEN_COLUMNS, *VALUE_COLUMNS}
    names -= set(REFERENCE_COLUMNS)

    def parts(columns: Iterable[str]) -> Iterator[Any]:
        # As Arrow sends it, a table has the same bytes whatever it was cut out of
        for table in dataset.select_columns(sorted(columns)).with_format("arrow").iter(batch_size=_BATCH):
            yield from (batch.serialize() for batch in table.combine_chunks().to_batches())

    reference = _hash(parts(REFERENCE_COLUMNS)) if has_reference is True else has_reference or None
    return {
        "rows": len(dataset),
        "contents of the rows": _hash(parts(names)),
        "the reference's log-probs in the rows": reference,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_record(record: dict[str, Any], checkpoint: str) -> None:
    """Write the record beside the other files of a checkpoint."""
    Path(checkpoint, RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


def check_record(
    record: dict[str, Any] | None, checkpoint: str, accelerator: Accelerator, *, allow_changed: bool
) -> None:
    """Compare a run with the record beside a checkpoint, in the main process, for all processes.

    Args:
        record: Of this run; read in the main process only.
        checkpoint: The folder to resume from.
        accelerator: Knows the processes.
        allow_changed: Whether another objective or other data are meant.

    Raises:
        ValueError: Training would go on with another objective or other data, or the checkpoint cannot be loaded.
    """
    verdict: list[Any] = [None, None]
    if accelerator.is_main_process:
        assert record is not None
        verdict = list(_compare(record, Path(checkpoint), allow_changed))
    broadcast_object_list(verdict, from_process=0)  # the folder may be on the main process's disk only
    error, warning = verdict
    if error:
        raise ValueError(error)
    if warning and accelerator.is_main_process:
        logger.warning(warning)


def _compare(record: Mapping[str, Any], checkpoint: Path, allow_changed: bool) -> tuple[str | None, str | None]:
    """Return what to raise and what to warn of."""
    file = checkpoint / RECORD
    if not file.is_file() and not (checkpoint / FILE_LIST).is_file():
        return None, None  # the warning of what lacks the list says it
    if not file.is_file():
        return None, (
            f"{checkpoint} has no {RECORD}: an older dmpo-trl wrote it. Nothing tells whether it belongs "
            "to this dataset, this reference and these options."
        )
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        changes = {part: _changes(old[part], entries) for part, entries in record.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{file} is damaged. Delete it to resume without comparing the two runs.", None
    if not has_optimizer(checkpoint):
        changes["form"] = [change for change in changes["form"] if not change.startswith("optim")]
    if changes["form"]:
        return (
            f"The checkpoint {checkpoint} cannot be loaded into this run: {'; '.join(changes['form'])}. Use the model "
            "and the optimizer that it was written with, or start a new run from its weights: pass it as `model`, and "
            "the model that training began with as `ref_model`."
        ), None
    changed = changes["objective"] + changes["data"]
    if changed and not allow_changed:
        return (
            f"The checkpoint {checkpoint} belongs to another run: {'; '.join(changed)}. Undo what changed, start a "
            "new run in another `output_dir`, or go on all the same with `allow_changed_run=True`."
        ), None
    warnings = {
        "It goes on with another objective or other data": changed,
        "The optimizer keeps what the checkpoint has": changes["optimizer"],
        "Its weights may differ from those of an uninterrupted run": changes["other"] + changes["versions"],
    }
    told = [f"{what}: {'; '.join(names)}." for what, names in warnings.items() if names]
    return None, " ".join([f"The run that resumes from {checkpoint} has changed.", *told]) if told else None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name what both records know and differ in."""
    return [
        f"{name}: not the same"
        if _HASH in (str(value)[: len(_HASH)], str(old[name])[: len(_HASH)])
        else f"{name}: {json.dumps(old[name])} then, {json.dumps(value)} now"
        for name, value in new.items()
        if name in old and old[name] != value and _UNKNOWN not in (old[name], value)
    ]
