"""Processes: each computes its share of the users, all of them get all results."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def over_processes(
    compute: Callable[[Sequence[int]], Sequence[T]], indices: Sequence[int], model: torch.nn.Module
) -> list[T]:
    """Return the results of `compute` for some indices, each computed by one of the processes.

    Every process must call it. Where the model's parameters are sharded (FSDP, ZeRO-3, tensor parallelism) each
    forward needs all processes, so every process computes everything.

    Args:
        compute: Takes indices and returns a result for each.
        indices: The indices, the same in every process.
        model: Decides whether the work can be shared.

    Returns:
        One result per index, in order, the same in every process.
    """
    state = PartialState()
    if state.num_processes == 1 or is_sharded(model):
        return list(compute(indices))
    own = range(state.process_index, len(indices), state.num_processes)
    results = compute([indices[place] for place in own])
    numbered: list[tuple[int, T]] = gather_object(list(zip(own, results, strict=True)))
    return [result for _, result in sorted(numbered, key=lambda pair: pair[0])]


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether a process holds only parts of the model's parameters."""
    # By the modules too: between forwards FSDP may hold some of its parameters whole, as plain ones
    return any(isinstance(module, FullyShardedDataParallel | FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")  # DeepSpeed ZeRO-3 numbers what it shards
        for parameter in model.parameters()
    )


def on_main_process(label: Any) -> Any:
    """Return `label` on the main process and None on the others, for one progress bar instead of one per process."""
    return label if PartialState().is_main_process else None
