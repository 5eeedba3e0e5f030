"""Blocks from `subtree_end` alone, against torch's from the whole mask."""

import inspect

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import make_model, prompts_and_completions, ragged_examples
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import create_sliding_window_causal_mask

from dmpo_trl.batching.blocks import visible_blocks
from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling.attention import trie_layout, use_trie_attention


@st.composite
def forests(draw):
    """`subtree_end` of a random forest in depth-first order, from the depth of each token."""
    # Mostly one deeper, so that trees span blocks and end at their edges
    steps = draw(st.lists(st.sampled_from([1] * 8 + [0, -1, -2, -5, -40]), min_size=1, max_size=60))
    depths, depth = [], -1
    for step in steps:
        depth = min(depth + 1, max(0, depth + step))
        depths.append(depth)
    length = len(depths)
    return [next((q for q in range(k + 1, length) if depths[q] <= depths[k]), length) for k in range(length)]


def by_torch(subtree_end, block):
    rows, length = subtree_end.shape

    def sees(b, h, q, k):
        return (k <= q) & (q < subtree_end[b, k])

    mask = create_block_mask(sees, rows, None, length, length, device="cpu", BLOCK_SIZE=block)
    count = mask.kv_indices.shape[-1]

    def dense(counts, indices):
        chosen = torch.arange(count) < counts[:, 0, :, None]
        return torch.zeros_like(chosen).scatter(-1, indices[:, 0].long(), chosen)

    full = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    return dense(mask.kv_num_blocks, mask.kv_indices) | full, full


@settings(deadline=None)
@example(rows=[[4, 4, 4, 4]], block=2)  # a tree that ends where a block does
@given(st.lists(forests(), min_size=1, max_size=2), st.sampled_from([2, 4, 8]))
def test_they_are_those_of_the_whole_mask(rows, block):
    length = max(map(len, rows))
    ends = torch.tensor([row + list(range(len(row) + 1, length + 1)) for row in rows])  # padded as `lay_out` does
    visited, full = visible_blocks(ends, block)
    expected_visited, expected_full = by_torch(ends, block)
    assert torch.equal(visited, expected_visited)
    assert torch.equal(full, expected_full)


@pytest.mark.parametrize("seed", range(3))
def test_they_are_those_of_real_batches(seed):
    """One row of several trees, in the blocks of a GPU's kernels."""
    prompts, completions = prompts_and_completions(ragged_examples(seed, (15, 3, 7, 15, 1) * 3))
    prompts = [[9] * (20 * index) + prompt for index, prompt in enumerate(prompts)]
    options = {"prefix_sharing": True, "pad_token_id": 0, "attention_balance": float("inf")}
    ends = lay_out(prompts, completions, **options, packed_length=2**31, pad_to_multiple_of=128)["subtree_end"]
    assert ends.shape[0] == 1
    assert ends.shape[1] >= 512
    for found, expected in zip(visible_blocks(ends), by_torch(ends, 128), strict=True):
        assert torch.equal(found, expected)
        assert 0 < found.sum() < found.numel()


class Largest(TorchDispatchMode):
    """Values of the largest tensor that was made."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.values = max(self.values, one.numel())
        return made


def test_a_row_of_32k_tokens_is_laid_out_without_a_tensor_of_its_square():
    prompts = [[5, *range(10, 2009)], [6, *range(10, 2009)]] * 8
    completions = [[[7 + option, *range(4)] for option in range(16)] for _ in prompts]
    prompts = [[index, *prompt] for index, prompt in enumerate(prompts)]
    options = {"prefix_sharing": True, "pad_token_id": 0, "attention_balance": float("inf")}
    with Largest() as largest:
        ends = lay_out(prompts, completions, **options, packed_length=2**31, pad_to_multiple_of=128)["subtree_end"]
        visited, _ = visible_blocks(ends)
    assert ends.shape[0] == 1
    assert ends.shape[1] > 32_000
    assert largest.values <= max(ends.shape[1] * 2, visited.numel())
    assert visited.float().mean() < 0.1  # a user's tokens are hidden from the others'


def test_windows_of_4096_tokens_are_masked_without_a_tensor_of_the_square_of_32k_tokens():
    """The mask of a windowed layer, as transformers asks for it; users are twice as long as the window."""
    model = make_model("mistral_window", sliding_window=4096)
    assert use_trie_attention(model, blocks=True)
    prompts = [[user, *range(10, 8009)] for user in range(4)]
    completions = [[[7 + option, *range(4)] for option in range(16)] for _ in prompts]
    options = {"prefix_sharing": True, "pad_token_id": 0, "attention_balance": float("inf")}
    batch = lay_out(prompts, completions, **options, packed_length=2**31, pad_to_multiple_of=128)
    depth, ends = batch["position_ids"], batch["subtree_end"]
    renamed = "cache" in inspect.signature(create_sliding_window_causal_mask).parameters  # transformers 5.24
    inputs = {"attention_mask": None, "cache" if renamed else "past_key_values": None, "position_ids": depth}
    with Largest() as largest, trie_layout(depth, ends):
        mask = create_sliding_window_causal_mask(model.config, torch.empty(*ends.shape, 1), **inputs)
    assert ends.shape[0] == 1
    assert (length := ends.shape[1]) > 32_000
    visited, full = visible_blocks(ends)
    assert largest.values <= 2 * max(length, visited.numel()) < length**2 / 1000
    # No block is seen as a whole, as windows end anywhere; the window itself is in the mask's function
    assert full.any()
    assert not mask.full_kv_num_blocks.any()
    assert torch.equal(mask.kv_num_blocks[0, 0], visited[0].sum(-1))
    first, zero = int(ends[0, 0]), torch.tensor(0)  # of the second user
    seen = [mask.mask_mod(zero, zero, torch.tensor(first + 7000), torch.tensor(first + key)) for key in (2904, 2905)]
    assert (seen, depth[0, first + 7000]) == ([False, True], 7000)
