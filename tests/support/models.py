"""Tiny models of real architectures, and a tokenizer."""

import functools
from pathlib import Path
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


TEXT_SIZES = {
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
_NO_GQA = {key: value for key, value in TEXT_SIZES.items() if key not in ("num_key_value_heads", "intermediate_size")}

# Architectures whose numbers the trie layout keeps, and configs that exercise what is special about each
SHARING = {
    "llama": ("llama", TEXT_SIZES),
    "qwen2_windows": ("qwen2", TEXT_SIZES | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", TEXT_SIZES | {"head_dim": 8}),
    "gemma2": ("gemma2", TEXT_SIZES | {"head_dim": 8, "sliding_window": 8, "attn_implementation": "eager"}),
    "gemma3": ("gemma3_text", TEXT_SIZES | {"head_dim": 8, "sliding_window": 8}),
    "mistral_window": ("mistral", TEXT_SIZES | {"sliding_window": 8}),
    "phi3_window": ("phi3", TEXT_SIZES | {"sliding_window": 8}),
    "gpt2": ("gpt2", _OLD_SIZES),
    "gpt_neox": ("gpt_neox", _NO_GQA | {"intermediate_size": 64}),
    "mixtral": ("mixtral", TEXT_SIZES | {"num_local_experts": 4}),
    "granite": ("granite", TEXT_SIZES | {"logits_scaling": 4.0}),
    "cohere": ("cohere", TEXT_SIZES | {"logit_scale": 0.25}),
    "gpt_oss": (
        "gpt_oss",
        TEXT_SIZES | {"head_dim": 8, "num_local_experts": 4, "sliding_window": 8, "attn_implementation": "eager"},
    ),
}
# Architectures that see other tokens by other ways than the attention mask
COPYING = {
    "mamba": ("mamba", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "lfm2_hybrid": ("lfm2", TEXT_SIZES | {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next_hybrid": (
        "qwen3_next",
        TEXT_SIZES
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


def save_model(folder: Path, name: str = "llama", **changes: Any) -> str:
    """Save a model of [`make_model`] with its tokenizer; return the folder."""
    make_model(name, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
