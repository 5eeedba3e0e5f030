"""Distributed training: rows, files, sharded models and process groups where there are several processes."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset, concatenate_datasets, load_from_disk
from datasets.fingerprint import get_temporary_cache_files_directory

from ..preprocessing.truncate import max_num_chosen


def num_own_rows(rows: int, accelerator: Accelerator) -> int:
    """Return how many rows of this process's batch, the first ones, are its own to count.

    So that all processes get as many rows, accelerate fills the last batch up with rows that have been there before.

    Args:
        rows: Number of rows of the batch that the process got from a data loader of `accelerator`.
        accelerator: Knows how far that data loader is.

    Returns:
        A number from 0 (every row of the batch is repeated) to `rows`.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return rows
    return min(max(state.remainder - accelerator.process_index * rows, 0), rows)


def forget_evaluation(model: Any, accelerator: Accelerator) -> None:
    """Let a model that was evaluated before its training be wrapped for training.

    Transformers prepares a model that is evaluated first for evaluation, and accelerate then takes it for prepared:
    without `DistributedDataParallel` each process would train a model of its own, and no word would say so.

    Args:
        model: The policy, unwrapped.
        accelerator: The one that prepares it.
    """
    replicated = accelerator.distributed_type.name.startswith("MULTI_")
    if replicated and getattr(model, "_is_accelerate_prepared", False):
        del model._is_accelerate_prepared
        accelerator._models.remove(model)


def readable_by_all(dataset: Dataset, name: str, accelerator: Accelerator) -> Dataset:
    """Return `dataset` in a file that all processes can read, where it is in memory and there are several of them.

    The cache of a dataset is written beside its files by one process and read by all; one in memory has none.

    Args:
        dataset: The same in every process.
        name: Its name, for messages.
        accelerator: Knows the processes.

    Raises:
        ValueError: Another machine cannot read the main process's temporary folder.
    """
    if accelerator.num_processes == 1 or dataset.cache_files:
        return dataset
    folder = [os.path.join(get_temporary_cache_files_directory(), dataset._fingerprint)]
    broadcast_object_list(folder, from_process=0)
    if accelerator.is_main_process:
        dataset.save_to_disk(folder[0])
    accelerator.wait_for_everyone()
    if not os.path.isdir(folder[0]):
        raise ValueError(
            f"`precompute_ref_log_probs=True` with the {name} dataset in memory: this process does not see the folder "
            f"{folder[0]} of the main process. Save the dataset with `save_to_disk` where all machines can read it, "
            "and pass what `datasets.load_from_disk` returns."
        )
    return load_from_disk(folder[0])


def rows_of_table(dataset: Dataset) -> Dataset:
    """Cut the reference log-probs of each row to the row's own numbers of completions.

    Args:
        dataset: Columns `rejected_ids` and `ref_rejected_logps`, whose lists are all as long as the longest needs, so
            that processes could gather them; `chosen_ids` and `ref_chosen_logps` likewise where rows have a list of
            chosen completions.
    """
    completions = ["rejected_ids"] if max_num_chosen(dataset) is None else ["chosen_ids", "rejected_ids"]
    values = [f"ref_{name.removesuffix('_ids')}_logps" for name in completions]
    cut = dataset.select_columns(completions + values).map(
        lambda row: {name: row[name][: len(row[ids])] for name, ids in zip(values, completions, strict=True)},
        remove_columns=completions,
    )
    return concatenate_datasets([dataset.remove_columns(values), cut], axis=1)


def check_compute_metrics(compute_metrics: Any, data_collator: Any, accelerator: Accelerator) -> None:
    """Refuse `compute_metrics` where several processes evaluate ragged batches.

    Args:
        compute_metrics: That given to the trainer, or None.
        data_collator: That given to the trainer; None for its own, whose batches are ragged.
        accelerator: Knows the other processes.

    Raises:
        ValueError: There are others.
    """
    if compute_metrics is not None and data_collator is None and accelerator.num_processes > 1:
        raise ValueError(
            "`compute_metrics` cannot gather the logits of ragged batches from several processes: leave it out "
            "(what `DPOTrainer` logs is logged), or evaluate in one process."
        )


def check_checkpoint_kind(checkpoint: str, accelerator: Accelerator) -> None:
    """Refuse a checkpoint that was written by another way to shard than this launch's, whose optimizer does not load.

    Args:
        checkpoint: Its folder.
        accelerator: Knows how this process was launched.

    Raises:
        ValueError: One of both is FSDP or DeepSpeed and the other is not.
    """
    names = os.listdir(checkpoint)
    kinds = {
        "FSDP": any(name.startswith("pytorch_model_fsdp") for name in names),
        "DeepSpeed": any(name.startswith("global_step") for name in names),
    }
    launched = accelerator.distributed_type
    now = {"FSDP": launched == DistributedType.FSDP, "DeepSpeed": launched == DistributedType.DEEPSPEED}
    for kind, was in kinds.items():
        if was != now[kind]:
            raise ValueError(
                f"The checkpoint {checkpoint} was written {'with' if was else 'without'} {kind}, and this run is "
                f"{'with' if now[kind] else 'without'} it. Launch with the accelerate config that wrote it, or start "
                "a new run from its weights: pass it as `model`, and the model that training began with as "
                "`ref_model`."
            )


@contextmanager
def gathered_parameters(model: torch.nn.Module) -> Iterator[None]:
    """Let `model` run before DeepSpeed has wrapped it: each module has its whole parameters while it runs.

    With ZeRO-3 a model is sharded from the moment it is loaded, and can run only once training has begun. Every
    process must run the same. Other models are left alone.
    """
    opened: list[Any] = []  # a stack: modules run inside each other

    def gather(module: torch.nn.Module, _: Any) -> None:
        import deepspeed

        opened.append(deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False))))
        opened[-1].__enter__()

    def release(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    hooks = []
    for module in model.modules():
        if any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(gather))
            hooks.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def begin_process_group() -> PartialState:
    """Join the processes of `accelerate launch` or `torchrun`, where there are several, and return this one's state.

    Without `cpu=True` accelerate joins processes on accelerators only, and those of a machine without one would each
    do all of the work.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def end_process_group() -> None:
    """Destroy the default process group, if there is one, after everything unreachable that holds it is freed.

    Call it at the end of a script, when no name refers to a trainer any more. A `DistributedDataParallel` that is the
    last to hold its group frees it without releasing the GIL, and waits for gloo's threads. One that still has to free
    a tensor waits for the GIL: the process never ends (https://github.com/pytorch/pytorch/issues/56297). Destroyed
    after the model, the group is freed by its own Python object, which releases the GIL.
    """
    gc.collect()  # trainers are often part of a cycle
    PartialState().destroy_process_group()
