"""Measurement of one step of one side (loss, gradient norm, time, memory, FLOPs), and the check that sides agree."""

import statistics
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from cases import Examples
from machine import PeakMemory, synchronize
from models import Models, backward_flops, forward_flops
from sides import Batch, Side, loss_of

# Loss (absolute) and gradient norm (relative). In half precision every layout rounds its own way, up to 0.5 nats
# per sequence, of which beta = 0.1 makes 0.05
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-2, 1e-1)}


@dataclass
class Outcome:
    """Measurements of one step of one side; `padded` counts padding too, `peak_gb` is above the loaded models."""

    loss: float
    gradient_norm: float
    tokens: int
    padded: int
    flops: int
    seconds: float
    cpu_seconds: float
    rate_share: float = float("nan")
    peak_gb: float = float("nan")


Outcomes = dict[str, Outcome | None]  # None: out of memory, or absent


def run_step(side: Side, models: Models, batches: list[Examples]) -> Outcome:
    """Run one step with all batches, whose gradients add up."""
    device = models.device
    for model in models.bases:  # only the trie needs the attention that takes its mask
        model.set_attn_implementation(side.attention)
    if side.checkpointing:
        models.policy.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        models.policy.gradient_checkpointing_disable()
    models.policy.zero_grad(set_to_none=True)
    known = [score_reference(side, models, examples) for examples in batches] if side.precomputed else None
    losses, work, padded = [], [], 0
    with PeakMemory(device) as memory:
        synchronize(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        for index, examples in enumerate(batches):
            parts = side.split(examples)
            total, batch_loss = sum(map(len, parts)), 0.0
            for place, part in enumerate(parts):
                batch = _to(device, side.collate(part))
                with models.autocast():
                    if side.loss == "sft":
                        ref_logps = None
                    elif known is not None:
                        ref_logps = known[index][place]
                    else:
                        with models.as_reference() as reference:
                            ref_logps = side.score(_compiled(reference) if side.compiled else reference, batch)
                    policy = _compiled(models.policy) if side.compiled else models.policy
                    logps = side.score(policy, batch)
                loss = loss_of(side.loss, logps, ref_logps, len(part)) * (len(part) / total)
                loss.backward()
                batch_loss += loss.item()
                padded += sum(batch[name].numel() for name in ("prompt_ids", "input_ids") if name in batch)
                work.append(side.count(batch))
            losses.append(batch_loss)
        synchronize(device)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    norm = torch.nn.utils.get_total_norm(p.grad for p in models.policy.parameters() if p.grad is not None)
    outcome = Outcome(
        statistics.mean(losses), float(norm), sum(w.tokens for w in work), padded, 0, seconds, cpu_seconds
    )
    config, adapter = models.bases[0].config, models.adapter_weights
    outcome.flops = sum(forward_flops(config, w, adapter) + backward_flops(config, w, adapter) for w in work)
    if known is None and side.loss != "sft":
        outcome.flops += sum(forward_flops(config, w) for w in work)
    if device.type == "cuda":
        outcome.peak_gb = memory.above_start_gb
    return outcome


def score_reference(side: Side, models: Models, examples: Examples) -> list[torch.Tensor]:
    with models.autocast(), models.as_reference() as reference:
        return [side.score(reference, _to(models.device, side.collate(part))) for part in side.split(examples)]


def _to(device: torch.device, batch: Batch) -> Batch:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@cache
def _compiled(model: Any) -> Any:
    return torch.compile(model)


def run_or_none(side: Side, models: Models, batches: list[Examples]) -> Outcome | None:
    """Run one step; return None where it runs out of GPU memory, or cannot run at all."""
    if side.absent:
        return None
    try:
        return run_step(side, models, batches)
    except torch.OutOfMemoryError:
        models.policy.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return None


def disagreements(sides: dict[str, Side], outcomes: Outcomes, dtype: torch.dtype) -> dict[str, str]:
    """Return what is wrong with each side that computed something other than the first side with the same loss."""
    largest_loss, largest_norm = TOLERANCES[dtype]
    first: dict[str, str] = {}
    found = {}
    for name, outcome in outcomes.items():
        if outcome is None:
            continue
        other = first.setdefault(sides[name].loss, name)
        expected = outcomes[other]
        loss = abs(outcome.loss - expected.loss)
        norm = abs(outcome.gradient_norm / expected.gradient_norm - 1)
        if not (loss <= largest_loss and norm <= largest_norm):
            found[name] = (
                f"'{name}' disagrees with '{other}': loss {outcome.loss:.7f} against {expected.loss:.7f}, gradient "
                f"norm {outcome.gradient_norm:.7f} against {expected.gradient_norm:.7f}. Times would mean nothing."
            )
    return found
