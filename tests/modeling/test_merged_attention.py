"""Attention over shared prefixes from plain causal parts: a second opinion on its gradients.

A trunk and its branches need no mask of ancestors: the trunk attends to itself, a branch to the whole trunk and to
itself. Of two softmaxes over parts of the keys the whole is their mean, weighted by the exponentials of their
log-sum-exps. The backward pass of each part is flash attention's own, given the merged output and log-sum-exp: the
gradient by a score is `p * (dp - output * grad)`, with the probability and the output of the whole.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

ops = torch.ops.aten


def part(query, key, value, causal):
    """Output and log-sum-exp of attention to a part of the keys."""
    return ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)


def part_gradients(gradient, query, key, value, output, logsumexp, causal):
    return ops._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, output, logsumexp, 0.0, causal
    )


def merged(query, key, value, gradient, trunk, branches):
    """Output, and gradients by queries, keys and values; lengths in tokens."""
    output, lse = part(query[:, :, :trunk], key[:, :, :trunk], value[:, :, :trunk], True)
    outputs, gradients = [output], [torch.zeros_like(states) for states in (query, key, value)]
    for total, own in zip(
        gradients,
        part_gradients(
            gradient[:, :, :trunk].contiguous(), *(s[:, :, :trunk] for s in (query, key, value)), output, lse, True
        ),
        strict=True,
    ):
        total[:, :, :trunk] += own
    start = trunk
    for length in branches:
        places = slice(start, start + length)
        own = query[:, :, places]
        pieces = [(slice(0, trunk), False), (places, True)]
        found = [part(own, key[:, :, keys], value[:, :, keys], causal) for keys, causal in pieces]
        lse = torch.logaddexp(found[0][1], found[1][1])
        output = sum((one - lse).exp()[..., None] * values for values, one in found)
        outputs.append(output)
        for keys, causal in pieces:
            by_query, by_key, by_value = part_gradients(
                gradient[:, :, places].contiguous(), own, key[:, :, keys], value[:, :, keys], output, lse, causal
            )
            gradients[0][:, :, places] += by_query
            gradients[1][:, :, keys] += by_key
            gradients[2][:, :, keys] += by_value
        start += length
    return torch.cat(outputs, dim=2), *gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_the_dense_mask_of_ancestors_gives_the_same(dtype, tolerance):
    trunk, branches = 37, (5, 1, 12)
    length = trunk + sum(branches)
    generator = torch.Generator().manual_seed(0)
    query, key, value, gradient = (torch.randn(1, 2, length, 8, dtype=dtype, generator=generator) for _ in range(4))
    ends, start = [length] * trunk, trunk
    for branch in branches:
        start += branch
        ends += [start] * branch
    place, ends = torch.arange(length), torch.tensor(ends)
    mask = (place <= place[:, None]) & (place[:, None] < ends)

    leaves = [states.clone().requires_grad_() for states in (query, key, value)]
    expected = scaled_dot_product_attention(*leaves, attn_mask=mask)
    expected.backward(gradient)
    found = merged(query, key, value, gradient, trunk, branches)
    wanted = [expected.detach(), *(leaf.grad for leaf in leaves)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
