"""Greedy generation, up to what ends a completion in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .._common_prefix import common_prefix_length
from ..preprocessing.tokenize import tokenize_completions
from .limits import Limits
from .loading import base_model_of, evaluation_mode


def generate_greedily(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Set[int],
    sharded: bool = False,
) -> list[str]:
    """Let a model complete prompts, each time by the most likely token.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer, in tokens.
        stops: The tokens that end an answer; see `stop_tokens`.
        sharded: Whether the processes hold parts of the model, and must generate in step.

    Returns:
        The answers, without special tokens and without white space around them.
    """
    device = model.get_input_embeddings().weight.device
    padding = Limits.of(model).padding(tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=sorted(stops), pad_token_id=padding
    )
    ids, mask = left_padded(prompts, padding)
    with evaluation_mode(model), _plain_generation(model), torch.no_grad():
        generated = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, synced_gpus=sharded
        )
    answers = [list(takewhile(lambda token: token not in stops, row)) for row in generated[:, ids.size(1) :].tolist()]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def left_padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay prompts out so that all end together.

    Args:
        prompts: Token ids of each prompt.
        padding: The token before them.

    Returns:
        Token ids and attention mask, (prompts, longest prompt).

    Example:
        >>> left_padded([[5, 6], [7]], 0)[0]
        tensor([[5, 6],
                [0, 7]])
    """
    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    there = [torch.ones_like(row) for row in rows]
    ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    return ids, pad_sequence(there, batch_first=True, padding_side="left")


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Any) -> set[int]:
    """Return the tokens that end an answer: those that transformers knows, and what ends a completion in training.

    A chat template may end a turn with another token than the tokenizer's end of sequence.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        prompt: Any prompt, a text or a list of messages.
    """
    stops = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *([] if stops is None else [stops] if isinstance(stops, int) else stops)} - {None}
    texts = ["A", "7"]  # of which nothing but the end is the same
    completions = texts if isinstance(prompt, str) else [[{"role": "assistant", "content": text}] for text in texts]
    _, (one, other) = tokenize_completions(tokenizer, prompt, completions)
    length = common_prefix_length(one[::-1], other[::-1])
    end = [token for token in one[len(one) - length :] if token in tokenizer.added_tokens_decoder]
    return stops | set(end[:1])


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Let `generate` do what its arguments say inside the block, and nothing else.

    transformers fills what they leave open from the model's own generation config: a repetition penalty, tokens that
    must not or must come. Greedy then means the most likely token.

    Args:
        model: A transformers model, or a wrapper around one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
        >>> model.generation_config.repetition_penalty = 1.1
        >>> with _plain_generation(model):
        ...     print(model.generation_config.repetition_penalty)
        None
        >>> model.generation_config.repetition_penalty
        1.1
    """
    base_model = base_model_of(model)
    own, base_model.generation_config = base_model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base_model.generation_config = own
