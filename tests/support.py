"""What several test files need: tiny models of real architectures, a tokenizer, and the naive oracle."""

import functools
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 384

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def _trained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["Watched: Alien, Aliens, Star Wars, Toy Story. Next:", "Babe, Heidi, The Matrix, The Mask, The Rock"] * 4
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # large enough for the context to matter
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OLD_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
_NO_GQA = {key: value for key, value in _COMMON.items() if key not in ("num_key_value_heads", "intermediate_size")}

# Architectures whose numbers the trie layout keeps, and configs that exercise what is special about each
SHARING = {
    "llama": ("llama", _COMMON),
    "qwen2_windows": ("qwen2", _COMMON | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", _COMMON | {"head_dim": 8}),
    "gemma2": ("gemma2", _COMMON | {"head_dim": 8, "sliding_window": 8, "attn_implementation": "eager"}),
    "gemma3": ("gemma3_text", _COMMON | {"head_dim": 8, "sliding_window": 8}),
    "mistral_window": ("mistral", _COMMON | {"sliding_window": 8}),
    "phi3_window": ("phi3", _COMMON | {"sliding_window": 8}),
    "gpt2": ("gpt2", _OLD_SIZES),
    "gpt_neox": ("gpt_neox", _NO_GQA | {"intermediate_size": 64}),
    "mixtral": ("mixtral", _COMMON | {"num_local_experts": 4}),
    "granite": ("granite", _COMMON | {"logits_scaling": 4.0}),
    "cohere": ("cohere", _COMMON | {"logit_scale": 0.25}),
    "gpt_oss": (
        "gpt_oss",
        _COMMON | {"head_dim": 8, "num_local_experts": 4, "sliding_window": 8, "attn_implementation": "eager"},
    ),
}
# Architectures that see other tokens by other ways than the attention mask
COPYING = {
    "mamba": ("mamba", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "lfm2_hybrid": ("lfm2", _COMMON | {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next_hybrid": (
        "qwen3_next",
        _COMMON
        | _MOE
        | {
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "bloom": ("bloom", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon_alibi": ("falcon", _NO_GQA | {"alibi": True}),
    "falcon": ("falcon", _NO_GQA | {"alibi": False}),
}


def make_model(name: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    model_type, options = (SHARING | COPYING)[name]
    options = options | changes
    attention = options.get("attn_implementation")
    options = {key: value for key, value in options.items() if key != "attn_implementation"}
    config = AutoConfig.for_model(model_type, **options)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def naive_logp(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Log-prob of a completion from the definition: one sequence, one forward, the model's own logits.

    In the model's precision, at least float32, and on its device.
    """
    ids = torch.tensor([list(prompt) + list(completion)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # Position t predicts token t + 1; the first token of an empty prompt's completion is predicted by nothing
    return sum(logps[t - 1, ids[0, t]] for t in range(max(len(prompt), 1), ids.size(1)))


def naive_logps(model: Any, prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
    """`naive_logp` of every completion, prompt by prompt, (C,)."""
    return torch.stack(
        [naive_logp(model, p, c) for p, options in zip(prompts, completions, strict=True) for c in options]
    )


def prompts_and_completions(examples: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The token ids of tokenised examples as `lay_out` takes them, the chosen completion first."""
    return (
        [example["prompt_ids"] for example in examples],
        [[example["chosen_ids"], *example["rejected_ids"]] for example in examples],
    )


def layout_logps(model: Any, batch: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    """Log-probs of the `count` completions of a batch that `lay_out` made, through the scoring head."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("token_pairs", "token_completions")}
    logps = model(**inputs, use_cache=False).log_probs[batch["token_pairs"]]
    return logps.new_zeros(count).index_add(0, batch["token_completions"], logps)


@contextmanager
def load_script(path: str) -> Iterator[ModuleType]:
    """A script of this repository as a module, by its path from the root."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[file.stem]


def ragged_examples(seed: int, counts: Sequence[int], *, shared_history: bool = True) -> list[dict[str, Any]]:
    """Tokenised preference examples with ragged prompts, numbers of negatives and completions that begin alike."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(6, VOCAB_SIZE, (length,), generator=generator).tolist()

    preamble, history, article = tokens(5, 5), tokens(12, 12), tokens(1, 2)
    examples = []
    for index, count in enumerate(counts):
        own_history = history if shared_history and index % 2 else tokens(4, 20)
        completions = [(article if i % 2 else []) + tokens(1, 6) + [2] for i in range(count + 1)]
        examples.append(
            {
                "prompt_ids": preamble + own_history + tokens(0, 3),
                "chosen_ids": completions[0],
                "rejected_ids": completions[1:],
            }
        )
    return examples
