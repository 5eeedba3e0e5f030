"""Scan of the vocabulary: one pass that yields log-probs and, if wanted, their derivatives by the hidden states."""

import importlib.util
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _statistics
from ._statistics import RunningStatistics, TokenLogProbs

# Triton comes with CUDA builds of torch; without it, tiles are folded in torch on any device.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
if _HAS_TRITON:
    from . import _triton


class Head(NamedTuple):
    """An output projection: ``z = c * tanh(logit_scale * (hidden @ weight.T + bias) / c)`` for a soft-cap c."""

    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    logit_scale: float
    softcap: float | None

    def project(self, hidden: Tensor, columns: slice, out: Tensor) -> Tensor:
        """Write ``hidden @ weight.T + bias`` of some vocabulary entries to `out`; return their weights."""
        weight = self.weight[columns].to(hidden.dtype)
        if self.bias is None:
            torch.mm(hidden, weight.t(), out=out)
        else:
            torch.addmm(self.bias[columns].to(hidden.dtype), hidden, weight.t(), out=out)
        return weight

    def slope(self, logits: Tensor) -> Tensor | float:
        """``dz/dy`` where z is `logits` and y the projection: ``logit_scale * (1 - (z / c)^2)``."""
        return self.logit_scale * (1.0 if self.softcap is None else 1 - (logits / self.softcap) ** 2)


class Scan(NamedTuple):
    """Outcome of one pass over the vocabulary."""

    result: TokenLogProbs
    statistics: RunningStatistics
    jacobian: Tensor | None  # (S, H), d log_probs / d hidden
    weights: Tensor  # `fold`'s for the last tile: those of every logit if there was one tile


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype that a linear layer would compute in: autocast's, else that of the hidden states."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def scan(
    hidden: Tensor, head: Head, targets: Tensor, outputs: tuple[str, ...], tile: tuple[int, int], with_jacobian: bool
) -> Scan:
    """Visit the vocabulary once, tile by tile.

    The derivative of a log-prob by its hidden state is ``dz_t/dy_t W_t - Σ_j p_j dz_j/dy_j W_j``. The sum is an
    expectation under the softmax, so it is accumulated beside the online log-sum-exp: rescaled whenever the maximum
    moves, divided by the sum of exponentials at the end.

    Args:
        hidden: ``(S, H)`` hidden states.
        head: The projection to V vocabulary entries.
        targets: ``(S,)`` vocabulary indices.
        outputs: Optional outputs to compute.
        tile: Most tokens and vocabulary entries of one tile.
        with_jacobian: Whether to form the derivative.
    """
    dtype = compute_dtype(hidden)
    accumulate_dtype = torch.promote_types(dtype, torch.float32)
    (S, H), V, device = hidden.shape, len(head.weight), hidden.device
    fold = _triton.fold if uses_triton(device) else _statistics.fold

    statistics = RunningStatistics.start(targets, accumulate_dtype, outputs)
    jacobian = torch.zeros((S, H), device=device, dtype=accumulate_dtype) if with_jacobian else None
    buffer = _tile_buffer(min(S, tile[0]), min(V, tile[1]), device, dtype)
    weights = buffer
    with torch.autocast(device.type, enabled=False):
        for rows in _slices(S, tile[0]):
            hidden_tile, row_statistics = hidden[rows].to(dtype), statistics.rows(rows)
            for columns in _slices(V, tile[1]):
                logits = buffer[: rows.stop - rows.start, : columns.stop - columns.start]
                weight_tile = head.project(hidden_tile, columns, out=logits)
                weights, rescale = fold(
                    logits,
                    columns.start,
                    targets[rows],
                    row_statistics,
                    head.logit_scale,
                    head.softcap,
                    with_weights=with_jacobian,
                )
                if jacobian is not None:
                    _addmm(jacobian[rows].mul_(rescale.unsqueeze(1)), weights, weight_tile)
            if jacobian is not None:
                target_weight = head.weight[targets[rows]].to(dtype).to(accumulate_dtype)
                target_weight *= head.slope(row_statistics.target_logit.unsqueeze(1))
                jacobian[rows].mul_(-head.logit_scale / row_statistics.sum_exp.unsqueeze(1)).add_(target_weight)
    return Scan(statistics.finish(targets, V), statistics, jacobian, weights)


def uses_triton(device: torch.device) -> bool:
    return device.type in ("cuda", "xpu") and _HAS_TRITON


def _slices(size: int, width: int) -> Iterator[slice]:
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


def _tile_buffer(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Rows begin at multiples of 64 elements: unaligned ones slow matrix products and loads down.
    return torch.empty((rows, math.ceil(columns / 64) * 64), device=device, dtype=dtype)[:, :columns]


def _addmm(accumulator: Tensor, a: Tensor, b: Tensor) -> None:
    """``accumulator += a @ b`` without rounding the product to the dtype of `a` and `b` first."""
    if accumulator.is_cuda and accumulator.dtype != a.dtype:
        torch.addmm(accumulator, a, b, out_dtype=accumulator.dtype, out=accumulator)
    else:
        accumulator.addmm_(a.to(accumulator.dtype), b.to(accumulator.dtype))
