"""`fold` of `_statistics.py` as one Triton kernel: two readings of the tile instead of one per operation."""
# ruff: noqa: N803  (compile-time constants are in capitals)
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._statistics import RunningStatistics

BLOCK_SIZE = 2048  # vocabulary entries that one program handles at a time


@triton.jit
def _logits(row_ptr, offsets, mask, logit_scale, softcap, HAS_SOFTCAP: tl.constexpr):
    z = tl.load(row_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * logit_scale
    if HAS_SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)  # tanh(x) = 2 sigmoid(2x) - 1
    return tl.where(mask, z, -float("inf"))


@triton.jit
def _fold_kernel(
    tile_ptr,
    tile_stride,
    n_columns,
    start,
    targets_ptr,
    max_ptr,
    sum_exp_ptr,
    target_logit_ptr,
    sum_logits_ptr,
    sum_exp_logits_ptr,
    sum_sq_exp_ptr,
    argmax_ptr,
    rescale_ptr,
    logit_scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SUM_LOGITS: tl.constexpr,
    HAS_SUM_EXP_LOGITS: tl.constexpr,
    HAS_SUM_SQ_EXP: tl.constexpr,
    HAS_ARGMAX: tl.constexpr,
    WITH_WEIGHTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = tile_ptr + row * tile_stride

    # The weights are relative to the maximum of the whole row, so it must be known before the first is written.
    old_max = tl.load(max_ptr + row)
    new_max = old_max
    if HAS_ARGMAX:
        argmax = tl.load(argmax_ptr + row)
    for block in range(0, n_columns, BLOCK_SIZE):
        offsets = block + tl.arange(0, BLOCK_SIZE)
        z = _logits(row_ptr, offsets, offsets < n_columns, logit_scale, softcap, HAS_SOFTCAP)
        if HAS_ARGMAX:
            block_max, block_argmax = tl.max(z, axis=0, return_indices=True)
            argmax = tl.where(block_max > new_max, (start + block + block_argmax).to(tl.int64), argmax)
        else:
            block_max = tl.max(z, axis=0)
        new_max = tl.maximum(new_max, block_max)

    rescale = tl.exp(old_max - new_max)
    target_column = tl.load(targets_ptr + row) - start
    target_logit = tl.load(target_logit_ptr + row)  # zero until the target's tile
    sum_exp = tl.load(sum_exp_ptr + row) * rescale
    if HAS_SUM_LOGITS:
        sum_logits = tl.load(sum_logits_ptr + row)
    if HAS_SUM_EXP_LOGITS:
        sum_exp_logits = tl.load(sum_exp_logits_ptr + row) * rescale
    if HAS_SUM_SQ_EXP:
        sum_sq_exp = tl.load(sum_sq_exp_ptr + row) * rescale * rescale
    for block in range(0, n_columns, BLOCK_SIZE):
        offsets = block + tl.arange(0, BLOCK_SIZE)
        mask = offsets < n_columns
        z = _logits(row_ptr, offsets, mask, logit_scale, softcap, HAS_SOFTCAP)
        e = tl.exp(z - new_max)  # zero where masked
        z = tl.where(mask, z, 0.0)
        target_logit += tl.sum(tl.where(offsets == target_column, z, 0.0), axis=0)
        sum_exp += tl.sum(e, axis=0)
        if HAS_SUM_LOGITS:
            sum_logits += tl.sum(z, axis=0)
        if HAS_SUM_EXP_LOGITS:
            sum_exp_logits += tl.sum(e * z, axis=0)
        if HAS_SUM_SQ_EXP:
            sum_sq_exp += tl.sum(e * e, axis=0)
        if WITH_WEIGHTS:
            if HAS_SOFTCAP:
                e = e * (1 - (z / softcap) * (z / softcap))
            tl.store(row_ptr + offsets, e.to(tile_ptr.dtype.element_ty), mask=mask)

    tl.store(max_ptr + row, new_max)
    tl.store(sum_exp_ptr + row, sum_exp)
    tl.store(target_logit_ptr + row, target_logit)
    tl.store(rescale_ptr + row, rescale)
    if HAS_SUM_LOGITS:
        tl.store(sum_logits_ptr + row, sum_logits)
    if HAS_SUM_EXP_LOGITS:
        tl.store(sum_exp_logits_ptr + row, sum_exp_logits)
    if HAS_SUM_SQ_EXP:
        tl.store(sum_sq_exp_ptr + row, sum_sq_exp)
    if HAS_ARGMAX:
        tl.store(argmax_ptr + row, argmax)


def fold(
    tile: Tensor,
    start: int,
    targets: Tensor,
    statistics: RunningStatistics,
    logit_scale: float,
    softcap: float | None,
    with_weights: bool,
) -> tuple[Tensor, Tensor]:
    """As `_statistics.fold`, in float32; the weights are rounded to the tile's dtype and overwrite it."""
    rescale = torch.empty_like(statistics.max)
    s = statistics
    # Triton launches on the current device, which is not the tile's when a model is split over several.
    with torch.accelerator.device_index(tile.device.index):
        _fold_kernel[(len(tile),)](
            tile,
            tile.stride(0),
            tile.shape[1],
            start,
            targets,
            s.max,
            s.sum_exp,
            s.target_logit,
            s.sum_logits,
            s.sum_exp_logits,
            s.sum_sq_exp,
            s.argmax,
            rescale,
            float(logit_scale),
            1.0 if softcap is None else float(softcap),
            HAS_SOFTCAP=softcap is not None,
            HAS_SUM_LOGITS=s.sum_logits is not None,
            HAS_SUM_EXP_LOGITS=s.sum_exp_logits is not None,
            HAS_SUM_SQ_EXP=s.sum_sq_exp is not None,
            HAS_ARGMAX=s.argmax is not None,
            WITH_WEIGHTS=with_weights,
            BLOCK_SIZE=BLOCK_SIZE,
        )
    return tile, rescale
