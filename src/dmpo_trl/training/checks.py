"""Checks that need a model or a step: token ids, positions, and log-probs that stop being numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers.utils import logging
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ..batching.collator import check_truncation
from ..modeling.limits import Limits
from ..preprocessing.format import TOKEN_COLUMNS, RowError, chosen_entries, rejected_entries
from ..preprocessing.truncate import token_lengths
from ..preprocessing.validate import is_list_type

logger = logging.get_logger(__name__)

_BATCH = 100_000  # rows

_LOWEST_OF_ADAPTERS = 1e-5  # learning rate; a tenth of what LoRA is usually trained with


def check_options(args: DPOConfig, data_collator: Any, model: Any, peft_config: Any) -> None:
    """Refuse options that cannot work, switch off those that ragged batches rule out, and warn of what hardly trains.

    Args:
        args: The trainer's.
        data_collator: That given to the trainer; None for its own.
        model: The policy, or its path.
        peft_config: Of an adapter to train instead of the model's weights; None for none, or for that of `model`.

    Raises:
        TypeError: The collator takes pairs only.
        ValueError: `truncation_mode`, `max_length` or `loss_type` is nothing that there is; `label_smoothing` that a
            loss divides by or takes the logarithm of; `activation_offloading` without an accelerator; or several GPUs
            in one process.
    """
    if args.max_length is not None:
        check_truncation(args.max_length, args.truncation_mode)
    if not args.loss_type:
        raise ValueError("`loss_type` names no loss: give it one, such as 'dmpo', or leave it out.")
    smoothing = args.label_smoothing
    if ("robust" in args.loss_type and not 0 <= smoothing < 0.5) or ("exo_pair" in args.loss_type and smoothing <= 0):
        raise ValueError(
            "`label_smoothing` must be at least 0 and below 0.5 for the loss 'robust', and above 0 for 'exo_pair'; it "
            f"is {smoothing}."
        )
    if isinstance(data_collator, DataCollatorForPreference):
        raise TypeError(
            "TRL's `DataCollatorForPreference` takes one rejected completion per example, and examples here have a "
            "list of them: leave `data_collator` out, or pass a `dmpo_trl.DataCollatorForMultiPreference`."
        )
    if args.activation_offloading and (args.use_cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "`activation_offloading=True` moves activations from an accelerator to the CPU, and training runs on "
            "the CPU already: leave it out."
        )
    check_devices(args.n_gpu, model)
    trains_adapter = peft_config is not None or isinstance(model, PeftModel)
    if trains_adapter and args.learning_rate < _LOWEST_OF_ADAPTERS:
        logger.warning(
            f"`learning_rate={args.learning_rate}` hardly moves an adapter, which begins at zero: the loss may stay "
            "where it begins. `DPOConfig`'s default of 1e-6 is meant for all weights of a large model; the examples "
            "train LoRA with 2e-4 and `beta=1.0` (docs/losses.md)."
        )
    accelerator_config: Any = args.accelerator_config
    if accelerator_config.dispatch_batches:
        logger.warning(
            "`dispatch_batches=True` cuts batches by their first dimension, which ragged batches do not have in "
            "common: it is set to False."
        )
    accelerator_config.dispatch_batches = False


def check_devices(gpus: int, model: Any) -> None:
    """Refuse `nn.DataParallel`, which cuts ragged batches in two: pairs would get lost, or indices out of range.

    TRL refuses it too, when the datasets have been tokenised. A path is not judged: TRL loads it over all GPUs.

    Args:
        gpus: GPUs that this process sees and no launcher has shared out, `TrainingArguments.n_gpu`.
        model: The policy, or its path.

    Raises:
        ValueError: The trainer would put a replica of the model on each GPU.

    Example:
        >>> check_devices(2, torch.nn.Linear(1, 1))
        Traceback (most recent call last):
        ...
        ValueError: 2 GPUs are visible to one process, which would cut every batch into 2 parts (...
        >>> check_devices(1, torch.nn.Linear(1, 1))
    """
    if gpus > 1 and isinstance(model, torch.nn.Module) and getattr(model, "hf_device_map", None) is None:
        raise ValueError(
            f"{gpus} GPUs are visible to one process, which would cut every batch into {gpus} parts "
            "(`nn.DataParallel`): examples whose numbers of completions differ cannot be cut. Run `accelerate launch "
            f"--num_processes {gpus} train.py` to train on all of them, set CUDA_VISIBLE_DEVICES=0 to train on one, "
            'or load the model with `device_map="auto"` to spread its layers over them.'
        )


@dataclass(frozen=True)
class _Limits:
    """The limits of a policy or a reference, for sequences that may be truncated.

    Attributes:
        role: What the model is, for messages.
        own: What it has embeddings for.
        max_length: Longest sequence, in tokens; infinite for no limit.
    """

    role: str
    own: Limits
    max_length: float

    def unknown_token(self, dataset: str, row: int, column: str, token: int) -> RowError:
        return RowError(
            dataset,
            row,
            column,
            self.own.unknown(token, self.role),
            "Call `model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer",
        )

    def exceeded_by(self, length: Any) -> Any:
        """Return whether sequences of so many tokens are too long after truncation."""
        return self.own.exceeded_by(np.minimum(length, self.max_length))

    def too_long(self, dataset: str, row: int, length: int) -> RowError:
        return RowError(
            dataset,
            row,
            "prompt",
            f"with its completions it has {int(min(length, self.max_length))} tokens, and the {self.role} "
            f"{self.own.positions} positions",
            f"Set `max_length` to at most {self.own.positions + 1}",
        )


def _limits_of(model: Any, ref_model: Any, max_length: int | None) -> list[_Limits]:
    """Return the limits that all rows must keep: the policy's, and the reference's where there is one."""
    longest = math.inf if max_length is None else max_length
    models = {"model": model, "reference model": ref_model}
    return [_Limits(role, Limits.of(one), longest) for role, one in models.items() if one is not None]


def check_limits(
    dataset: Dataset | IterableDataset, name: str, model: Any, ref_model: Any, max_length: int | None
) -> Dataset | IterableDataset:
    """Refuse token ids and lengths that a model has no embedding for, which torch reports as an index out of range.

    Args:
        dataset: Tokenised examples.
        name: Its name, for messages.
        model: The policy, wrapped or not.
        ref_model: The reference; None where the policy takes its place.
        max_length: Longest sequence, in tokens; None for no limit.

    Returns:
        The dataset; a stream with the check of each row when it comes.

    Raises:
        RowError: A model cannot take a row.
    """
    limits = _limits_of(model, ref_model, max_length)
    if isinstance(dataset, IterableDataset):
        return dataset.map(partial(_check_row, limits=limits, name=name), with_indices=True)
    tightest = min(limits, key=lambda one: one.own.tokens)
    offset = 0
    table_columns = dataset.select_columns(list(TOKEN_COLUMNS)).with_format("arrow")
    for table in table_columns.iter(batch_size=_BATCH):
        for column in TOKEN_COLUMNS:
            tokens, owners = _tokens(table[column].combine_chunks())
            if len(tokens) and tokens.max() >= tightest.own.tokens:
                worst = int(np.argmax(tokens >= tightest.own.tokens))
                raise tightest.unknown_token(name, offset + int(owners[worst]), column, int(tokens[worst]))
        offset += len(table)
    tightest = min(limits, key=lambda one: one.own.positions)
    if tightest.exceeded_by(math.inf):
        longest = token_lengths(dataset).longest_per_row
        exceeded = tightest.exceeded_by(longest)
        if exceeded.any():
            row = int(np.argmax(exceeded))
            raise tightest.too_long(name, row, int(longest[row]))
    return dataset


def _check_row(row: dict[str, Any], index: int, *, limits: Sequence[_Limits], name: str) -> dict[str, Any]:
    prompt = row["prompt_ids"]
    completions = [(column, ids) for column, _, ids in (*chosen_entries(row), *rejected_entries(row))]
    columns = [("prompt_ids", prompt), *completions]
    longest = len(prompt) + max(len(ids) for _, ids in completions)
    for one in limits:
        for column, ids in columns:
            if (token := one.own.first_unknown(ids)) is not None:
                raise one.unknown_token(name, index, column, token)
        if one.exceeded_by(longest):
            raise one.too_long(name, index, longest)
    return {}


def _tokens(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return all tokens of a column of lists, or of lists of lists, and the row of each."""
    owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(column)
    if is_list_type(values.type):
        owners = owners[pc.list_parent_indices(values).to_numpy(zero_copy_only=False)]
        values = pc.list_flatten(values)
    return values.to_numpy(zero_copy_only=False), owners


def check_step(margin: float, step: int, fp16: bool) -> None:
    """Stop a run whose loss is not a number any more, before an optimizer step makes all its weights so.

    Transformers leaves such losses out of its logs (`logging_nan_inf_filter`) and trains on.

    Args:
        margin: The step's mean reward margin, over all processes.
        step: Number of optimizer steps made.
        fp16: Whether training is in float16, by autocast or by its weights: then it is a warning, as overflows are
            to be expected, and with `fp16=True` the gradient scaler skips the step.

    Raises:
        FloatingPointError: The margin is not finite.
    """
    if not math.isfinite(margin):
        _stop("The log-probs of a batch are not finite", f" after {step} optimizer steps.", fp16)


def check_gradient(norm: float, step: int, fp16: bool, *, before_update: bool = True) -> None:
    """Stop a run whose gradients are not numbers, although its log-probs are.

    Clipping by such a norm makes every gradient NaN, and the optimizer then every weight.

    Args:
        norm: Norm of all gradients, over all processes.
        step: As in `check_step`.
        fp16: As in `check_step`.
        before_update: Whether the optimizer step with these gradients is still to come; DeepSpeed has made it.

    Raises:
        FloatingPointError: The norm is not finite.
    """
    if not math.isfinite(norm):
        when = f" after {step} optimizer steps, though its log-probs are."
        _stop("The gradients of a batch are not finite", when, fp16, before_update=before_update)


def _stop(problem: str, when: str, fp16: bool, *, before_update: bool = True) -> None:
    if fp16:
        logger.warning_once(  # so without the step
            f"{problem}. float16 overflows above 65,504. With `fp16=True` the step is skipped; weights that are "
            "float16 themselves may become NaN. If it lasts, train in bf16 or fp32."
        )
        return
    weights = "The weights are still those of before this batch: the"
    if not before_update:
        weights = "The weights may not be either; the"
    raise FloatingPointError(
        f"{problem}{when} {weights} last checkpoint is good. Lower `learning_rate` or `max_grad_norm`, or train in "
        "bf16 or fp32."
    )
