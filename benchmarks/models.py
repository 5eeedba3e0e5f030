"""Models of the benchmarks: a folder, or random weights in the shape of a known model; and the FLOPs they need.

Model FLOPs are those of the matrix products of a llama-like model (gated MLP, grouped queries); a multiplication and
an addition count as two:

    layers     2 FLOPs per weight and token: q, k, v, o and the three matrices of the MLP
    attention  4 * heads * head size per layer, token and visible token (q k^T, and the weights times v). A token sees
               itself and its ancestors; what the mask hides is not counted, in any layout
    head       2 FLOPs per weight and projected position

A backward pass costs two forward passes where weights are trained (gradients of inputs and of weights), and one where
they are frozen; attention always costs two. Padding, recomputation by checkpointing and the optimizer do not count.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from dmpo_trl.modeling.probe import prepare_for_scoring

# hidden, MLP, layers, heads, key-value heads, head size, vocabulary, tied head: from the models' published configs
SHAPES: dict[str, PretrainedConfig] = {
    name: config_class(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
    )
    for name, config_class, (hidden, mlp, layers, heads, kv_heads, head_dim, vocabulary, tied) in (
        ("tiny", LlamaConfig, (32, 64, 2, 2, 2, 16, 256, False)),
        ("smollm2-135m", LlamaConfig, (576, 1536, 30, 9, 3, 64, 49152, True)),
        ("llama-1b", LlamaConfig, (2048, 8192, 16, 32, 8, 64, 128256, True)),
        ("llama-8b", LlamaConfig, (4096, 14336, 32, 32, 8, 128, 128256, False)),
        ("qwen-0.6b", Qwen3Config, (1024, 3072, 28, 16, 8, 128, 151936, True)),
        ("qwen-1.7b", Qwen3Config, (2048, 6144, 28, 16, 8, 128, 151936, True)),
        ("qwen-8b", Qwen3Config, (4096, 12288, 36, 32, 8, 128, 151936, False)),
    )
}

LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def movielens_folder() -> Path:
    """Folder of the quickstart's MovieLens 100K."""
    sys.path.insert(0, str(ROOT / "examples"))
    from _pretrained import MOVIELENS_100K

    return MOVIELENS_100K.fetch()[0].parent


def default_model() -> str:
    """Return the folder of the quickstart's SmolLM2-135M."""
    sys.path.insert(0, str(ROOT / "examples"))
    from _pretrained import model_folder

    return model_folder(None)


@dataclass
class ModelSettings:
    """Settings that all scripts share: model, dtype and device."""

    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    shape: str | None = field(default=None, metadata={"help": f"Random weights in a shape: {', '.join(SHAPES)}."})
    tiny: bool = field(default=False, metadata={"help": "A tiny random model and letters, to try the script."})
    lora: bool = field(default=False, metadata={"help": "LoRA on all linear layers. Default: all parameters."})
    four_bit: bool = field(default=False, metadata={"help": "Linear layers in 4 bits (NF4); with --lora."})
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.tiny:
            self.shape = "tiny"
        if self.shape is not None and self.shape not in SHAPES:
            raise ValueError(f"Unknown --shape {self.shape!r}: choose among {list(SHAPES)}.")
        if self.four_bit and not self.lora:
            raise ValueError("--four_bit needs --lora: weights of 4 bits have no gradient.")
        if self.model is None and self.shape is None:
            self.model = default_model()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def describe(self) -> dict[str, str]:
        """Return the entries for the head of a report."""
        training = ("LoRA on 4-bit weights" if self.four_bit else "LoRA") if self.lora else "all parameters"
        model = f"random weights, {self.shape}" if self.shape else Path(str(self.model)).name
        return {"model": f"{model}, {self.dtype}, {training}"}


@dataclass
class Models:
    """Policy and reference; with LoRA the reference is the policy without its adapter."""

    policy: Any
    reference: Any | None

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        with torch.no_grad():
            if self.reference is not None:
                yield self.reference
                return
            with self.policy.disable_adapter():
                yield self.policy

    def autocast(self) -> torch.autocast:
        """As the trainer does: adapters are float32 on half-precision weights, whose products are not to be."""
        dtype = base_model(self.policy).dtype
        half = isinstance(self.policy, PeftModel) and dtype != torch.float32
        return torch.autocast(self.device.type, dtype if half else None, enabled=half)

    @property
    def bases(self) -> list[Any]:
        """The transformers models of policy and reference."""
        return [base_model(model) for model in (self.policy, self.reference) if model is not None]

    @property
    def device(self) -> torch.device:
        return torch.device(self.policy.device)

    @property
    def adapter_weights(self) -> int:
        """Number of trained weights if they are those of an adapter, else 0."""
        if not isinstance(self.policy, PeftModel):
            return 0
        return sum(weight.numel() for weight in self.policy.parameters() if weight.requires_grad)


def base_model(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_models(settings: ModelSettings) -> Models:
    """Return policy and reference.

    If both were equal, any log-probs would give the loss log 2. So the reference's weights are disturbed; with LoRA
    the weights of the adapter are random.
    """
    torch.manual_seed(0)
    dtype = settings.torch_dtype
    if settings.shape is not None:
        with torch.device("cpu" if settings.four_bit else settings.device):
            policy = AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[settings.shape]), dtype=dtype)
    else:
        policy = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    if settings.four_bit:
        quantize_linear(policy, dtype)
    policy = policy.to(settings.device)
    reference = None
    if not settings.lora:
        reference = copy.deepcopy(policy).requires_grad_(False).eval()
        for weight in reference.parameters():
            weight.mul_(1 + 0.01 * torch.randn_like(weight))
    for model in (policy, reference):
        if model is not None:
            add_fused_lm_head(model)  # before ours: each head passes on the calls that are not for it
    if settings.lora:
        policy = get_peft_model(policy, LORA)
    models = Models(policy.train(), reference)
    for model in (policy, reference):
        if model is not None:
            prepare_for_scoring(model, base_model(model), True)
    return models


def quantize_linear(model: Any, dtype: torch.dtype) -> None:
    """Replace all linear layers but the head by 4-bit layers (NF4), which are quantised on the way to the device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not head:
                quantised = Linear4bit(
                    layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                )
                quantised.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                setattr(parent, name, quantised)
    model.is_loaded_in_4bit = model.is_quantized = True  # as peft and the probe's tolerance look for it


# FLOPs


@dataclass(frozen=True)
class Work:
    """Work of a batch: tokens, visible tokens (summed over the tokens), and projected positions."""

    tokens: int
    seen: int
    projected: int


def layer_weights(config: PretrainedConfig) -> int:
    """Return the number of weights in the matrices of all layers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * head_dim * (config.num_attention_heads + config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def forward_flops(config: PretrainedConfig, work: Work, adapter_weights: int = 0) -> int:
    """Return the model FLOPs of a forward pass."""
    layers, attention, head = _parts(config, work)
    return layers + attention + head + 2 * adapter_weights * work.tokens


def backward_flops(config: PretrainedConfig, work: Work, adapter_weights: int = 0) -> int:
    """Return the model FLOPs of a backward pass: to all weights, or with `adapter_weights` to these alone."""
    layers, attention, head = _parts(config, work)
    if adapter_weights:
        return layers + 2 * attention + head + 4 * adapter_weights * work.tokens
    return 2 * (layers + attention + head)


def _parts(config: PretrainedConfig, work: Work) -> tuple[int, int, int]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = 2 * layer_weights(config) * work.tokens
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * work.seen
    head = 2 * config.vocab_size * config.hidden_size * work.projected
    return layers, attention, head
