"""Log-probs of target tokens, straight from hidden states: the logits of all tokens never exist at once."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._autograd import FrozenHeadLogProb, OneTileLogProb
from ._scan import Head, scan, uses_triton
from ._statistics import OPTIONAL_OUTPUTS, TokenLogProbs

__all__ = ["TokenLogProbs", "gather_logprobs", "logprobs_of_logits"]

# (tokens, vocabulary entries) of one tile. On a CPU a tile that fits the last-level cache is the fastest; on a GPU the
# wide tiles of TRL's fused head keep the matrix products large.
CPU_TILE = (1024, 2048)
GPU_TILE = (4096, 32768)
_ALIGNMENT = 128
# Under a trainable head a CPU keeps the softmax for the backward pass up to this many values (256 MiB in float32):
# 25 to 50% less time than computing it again, at 36 to 1,024 tokens of a vocabulary of 49,152 and at 36 and 144 of
# vocabularies up to 262,144.
MAX_KEPT_SOFTMAX = 2**26
# Later releases fold the tiles in torch where there is no Triton
KERNEL_NEEDS_TRITON = version("trl").startswith("1.15.")


# Its tile sizes follow the number of tokens: traced, it would be compiled anew for every batch
@torch.compiler.disable
def gather_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    outputs: Sequence[str] = ("log_probs",),
) -> TokenLogProbs:
    """Return the log-prob of one target token for each hidden state.

    With ``y = logit_scale * (hidden @ weight.T + bias)`` and ``z = softcap * tanh(y / softcap)`` (``z = y`` without a
    soft-cap), ``log_probs[s] = z[s, targets[s]] - logsumexp(z[s])``. The projection runs tile by tile with an online
    log-sum-exp, so memory does not grow with S * V. Products are computed in the dtype of `hidden`, or of autocast
    where it is enabled, as the model's own head would; everything after them in float32.

    What the gradient asks for decides how:

    - head frozen (LoRA): the derivative by `hidden` is formed in the same pass, ``(S, H)`` in float32;
    - head trainable: TRL's `ChunkedLogProbFunction`, which computes every tile again in the backward pass; on a CPU,
      for at most `MAX_KEPT_SOFTMAX` values of S * V, the softmax is kept instead. TRL 1.15 has that function for
      Triton only; elsewhere it is the same by slices of the tokens;
    - no gradient: the pass alone.

    Args:
        hidden: ``(S, H)`` hidden states of the positions that predict the targets; S may be 0.
        weight: ``(V, H)`` weight of the head, whole (gather sharded parameters first).
        targets: ``(S,)`` int64 vocabulary indices.
        bias: ``(V,)`` bias of the head.
        logit_scale: Factor of the logits, applied before the soft-cap.
        softcap: Soft-cap of the logits (Gemma's ``final_logit_softcapping``).
        outputs: Fields of `TokenLogProbs` to compute; ``"log_probs"`` is always among them.

    Returns:
        `TokenLogProbs`, float32 (float64 for float64 inputs unless TRL's kernel computes them, which is float32). Only
        ``log_probs`` has a gradient.

    Raises:
        ValueError: Shapes do not fit, an output is unknown, the soft-cap is not positive, or, on a CPU, a target is
            not a vocabulary index. Elsewhere reading the targets would wait for all that was launched before: there
            the log-prob of such a target is NaN.

    Example:
        >>> import torch
        >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> gather_logprobs(hidden, weight, torch.tensor([1])).log_probs
        tensor([-0.4076])
        >>> gather_logprobs(hidden, weight, torch.tensor([1]), softcap=1.5).log_probs
        tensor([-0.6529])
    """
    _check(hidden, weight, targets, bias, softcap, outputs)
    optional = tuple(name for name in OPTIONAL_OUTPUTS if name in outputs)
    head = Head(weight, bias, logit_scale, softcap)
    if targets.device.type == "cpu":
        _refuse_unknown(targets, len(weight))
        return _gather(hidden, head, targets, optional)
    return _gather_known(hidden, head, targets, optional)


def _gather_known(hidden: Tensor, head: Head, targets: Tensor, optional: tuple[str, ...]) -> TokenLogProbs:
    """Gather with NaN for targets that are no vocabulary index."""
    outside = (targets < 0) | (targets >= len(head.weight))
    scores = _gather(hidden, head, targets.masked_fill(outside, 0), optional)
    return replace(scores, log_probs=scores.log_probs.masked_fill(outside, float("nan")))


def _gather(hidden: Tensor, head: Head, targets: Tensor, optional: tuple[str, ...]) -> TokenLogProbs:
    weight, bias, logit_scale, softcap = head
    on_cpu = hidden.device.type == "cpu"
    tile = _tile_shape(len(hidden), len(weight), on_cpu)
    head_trains = weight.requires_grad or (bias is not None and bias.requires_grad)

    if not torch.is_grad_enabled() or not (head_trains or hidden.requires_grad):
        return scan(hidden, head, targets, optional, tile, with_jacobian=False).result
    if not head_trains:
        return TokenLogProbs(*FrozenHeadLogProb.apply(hidden, head, targets, optional, tile))
    if on_cpu and len(hidden) * len(weight) <= MAX_KEPT_SOFTMAX:
        return TokenLogProbs(*OneTileLogProb.apply(hidden, *head, targets, optional))
    if KERNEL_NEEDS_TRITON and not uses_triton(hidden.device):
        return _recompute_slices(hidden, head, targets, optional, max(tile[0] * tile[1] // len(weight), 1))

    from trl.kernels import ChunkedLogProbFunction  # TRL 1.15 imports Triton there

    log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden, weight, bias, targets, 1.0, tile[1], softcap, logit_scale, optional
    )
    entropy = None if entropy is None else entropy.detach()  # the one output TRL has a second gradient for
    return TokenLogProbs(log_probs, entropy, mean_logits, is_top1, log_sum_sq_probs)


def logprobs_of_logits(logits: Tensor, targets: Tensor, *, outputs: Sequence[str] = ("log_probs",)) -> TokenLogProbs:
    """Return the log-prob of one target token for each row of logits: `gather_logprobs` for logits that exist already.

    Args:
        logits: ``(S, V)`` logits of the positions that predict the targets; S may be 0.
        targets: ``(S,)`` int64 vocabulary indices.
        outputs: Fields of `TokenLogProbs` to compute; ``"log_probs"`` is always among them.

    Returns:
        `TokenLogProbs`, at least in float32. Only ``log_probs`` has a gradient.

    Example:
        >>> import torch
        >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
        >>> logprobs_of_logits(logits, torch.tensor([0])).log_probs
        tensor([-0.6931])
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = logits.log_softmax(dim=-1)
    log_probs = logps.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        return TokenLogProbs(
            log_probs,
            entropy=torch.special.entr(logps.exp()).sum(dim=-1) if "entropy" in outputs else None,
            mean_logits=logits.mean(dim=-1) if "mean_logits" in outputs else None,
            is_top1=logits.argmax(dim=-1) == targets if "is_top1" in outputs else None,
            log_sum_sq_probs=(2 * logps).logsumexp(dim=-1) if "log_sum_sq_probs" in outputs else None,
        )


def _recompute_slices(
    hidden: Tensor, head: Head, targets: Tensor, outputs: tuple[str, ...], tokens: int
) -> TokenLogProbs:
    """The whole vocabulary for a few tokens at a time, computed again in the backward pass."""
    slices = [
        checkpoint(OneTileLogProb.apply, states, *head, ids, outputs, use_reentrant=False)
        for states, ids in zip(hidden.split(tokens), targets.split(tokens), strict=True)
    ]
    fields: list[Any] = [None if parts[0] is None else torch.cat(parts) for parts in zip(*slices, strict=True)]
    return TokenLogProbs(*fields)


def _tile_shape(n_tokens: int, vocabulary_size: int, on_cpu: bool) -> tuple[int, int]:
    tokens, vocabulary = CPU_TILE if on_cpu else GPU_TILE
    if 0 < n_tokens < tokens:  # fewer, wider tiles: each costs a handful of kernel launches or thread barriers
        vocabulary = tokens * vocabulary // n_tokens
        # Rows of a tile begin at multiples of its width: without this, addresses that no fast matrix product takes
        vocabulary -= vocabulary % min(vocabulary, _ALIGNMENT)
    return tokens, min(vocabulary, vocabulary_size)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    outputs: Sequence[str],
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (S, H) and weight (V, H), got {tuple(hidden.shape)} and {tuple(weight.shape)}. An empty "
            "or one-dimensional weight is a shard: gather the head's parameters first."
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of shape ({len(hidden)},), one for each hidden state, got {targets.dtype} of "
            f"shape {tuple(targets.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must be of shape ({len(weight)},), one for each row of weight, got {tuple(bias.shape)}."
        )
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, or None for no soft-cap, got {softcap}.")
    known = ("log_probs", *OPTIONAL_OUTPUTS)
    if unknown := [name for name in outputs if name not in known]:
        raise ValueError(f"Unknown outputs {unknown}; known are {list(known)}.")


def _refuse_unknown(targets: Tensor, vocabulary_size: int) -> None:
    outside = (targets < 0) | (targets >= vocabulary_size)
    if outside.any():
        position = int(outside.nonzero()[0])
        raise ValueError(
            f"targets[{position}] is {int(targets[position])}, not an index into a vocabulary of {vocabulary_size}. "
            "Leave out positions that are not scored (label -100)."
        )
