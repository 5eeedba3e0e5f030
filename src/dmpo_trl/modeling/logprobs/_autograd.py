"""Autograd of `scan`: the derivative by the hidden states is formed in the forward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._scan import Head, scan


class FrozenHeadLogProb(torch.autograd.Function):
    """Log-probs under a head without gradient (LoRA).

    The backward pass multiplies by the ``(S, H)`` derivative: it neither visits the vocabulary nor needs the head.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, outputs: tuple[str, ...], tile: tuple[int, int]
    ) -> tuple[Tensor | None, ...]:
        """Run `scan`; return the fields of `TokenLogProbs`."""
        result, _, jacobian, _ = scan(hidden, head, targets, outputs, tile, with_jacobian=True)
        ctx.save_for_backward(jacobian)
        ctx.hidden_dtype = hidden.dtype
        values = tuple(vars(result).values())
        ctx.mark_non_differentiable(*(x for x in values[1:] if x is not None))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient by the hidden states."""
        (jacobian,) = ctx.saved_tensors
        return (grad.unsqueeze(1) * jacobian).to(ctx.hidden_dtype), None, None, None, None


class OneTileLogProb(torch.autograd.Function):
    """Log-probs of so few tokens that ``(S, V)`` is one tile: the softmax is kept rather than computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        targets: Tensor,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """Run `scan` with one tile; return the fields of `TokenLogProbs`."""
        head = Head(weight, bias, logit_scale, softcap)
        tile = (max(len(hidden), 1), len(weight))
        result, statistics, jacobian, weights = scan(hidden, head, targets, outputs, tile, with_jacobian=True)
        # d log_prob / d projection = target_slope * onehot(target) - softmax, with the slopes in both
        softmax_factor = logit_scale / statistics.sum_exp
        target_slope = torch.ones_like(softmax_factor) * head.slope(statistics.target_logit)
        ctx.save_for_backward(hidden, targets, jacobian, weights, softmax_factor, target_slope)
        ctx.head_dtypes = weight.dtype, None if bias is None else bias.dtype
        values = tuple(vars(result).values())
        ctx.mark_non_differentiable(*(x for x in values[1:] if x is not None))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients by the hidden states, the weight and the bias."""
        hidden, targets, jacobian, weights, softmax_factor, target_slope = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.head_dtypes
        grad_hidden = grad_weight = grad_bias = None
        grad_softmax, grad_target = (-grad * softmax_factor).unsqueeze(1), (grad * target_slope).unsqueeze(1)
        if ctx.needs_input_grad[0]:
            grad_hidden = (grad.unsqueeze(1) * jacobian).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            hidden = hidden.to(weights.dtype)
            grad_weight = weights.new_empty(weights.shape[1], hidden.shape[1])
            torch.mm(weights.t(), grad_softmax * hidden, out=grad_weight)
            grad_weight = grad_weight.index_add_(0, targets, grad_target * hidden).to(weight_dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = (weights * grad_softmax).sum(0)
            grad_bias = grad_bias.index_add_(0, targets, grad_target.squeeze(1)).to(bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None
