"""Settings of torch that decide which kernels compute, set for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def masks_off_cudnn() -> Iterator[None]:
    """Keep `scaled_dot_product_attention` off cuDNN's kernels inside the block; it changes nothing off CUDA.

    torch 2.11 and later prefer them on H100 and H200 wherever a mask is passed, and their backward pass returns NaN at
    some lengths (pytorch#196678). The user's setting comes back after the block. It must be around the backward pass
    too, which with gradient checkpointing runs the forward again.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute float32 products in float32 inside the block, whatever the user has set (TF32, bfloat16 on a CPU).

    `tf32=True`, `torch_compile=True` and some container images set TF32, which keeps 10 bits: two layouts of the same
    sequences then differ by more than what tells a right model from a wrong one. The user's settings come back.
    """
    modules: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    everywhere = torch.backends.fp32_precision  # type: ignore[attr-defined]
    before = [matmul.fp32_precision for matmul in modules]
    # torch has an older way to set this too, and refuses to read it while the two disagree
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they do, and nobody expects to read it
        older = None
    if older is not None:
        torch.set_float32_matmul_precision("highest")
    for matmul in modules:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for matmul, own in zip(modules, before, strict=True):
            # What comes from the setting for everything goes on following it
            matmul.fp32_precision = "none" if own == everywhere else own
