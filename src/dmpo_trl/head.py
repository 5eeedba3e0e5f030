"""A second face for `model.forward`: log-probs of chosen (position, next token) pairs instead of logits."""

import functools
import types
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from transformers.utils import ModelOutput
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .attention import trie_layout
from .logprobs import gather_logprobs


@dataclass
class ScoringOutput(ModelOutput):
    """What a forward with `scored_rows` returns; one value for each scored pair, (S,), None where not asked for.

    Attributes:
        log_probs: Log-prob of the target, in nats. The only differentiable one.
        entropy: Entropy of the next-token distribution, in nats.
        mean_logits: Mean of the logits over the vocabulary.
        is_top1: Whether the target is the most likely token.
        log_sum_sq_probs: `log sum_v p(v)^2`, which WPO's weights use.
        aux_loss: Load-balancing loss of a mixture of experts, a scalar.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    log_sum_sq_probs: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """Scale and soft cap that a model applies to its logits: `softcap * tanh(scale * z / softcap)`.

    Architectures name the scale differently; the probe compares the outcome with the model's own numbers.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            scale = getattr(config, name)
            break
    else:
        if getattr(config, "logits_scaling", None) is not None:  # Granite and MiniCPM3 divide by it
            scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return scale, getattr(config, "final_logit_softcapping", None)


def _load_balancing_loss(
    config: PretrainedConfig, router_logits: Any, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    # Every mixture of experts in transformers takes Mixtral's
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = config.get_text_config()
    return cast(
        torch.Tensor,
        load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, attention_mask),
    )


def add_scoring_head(model: Any) -> None:
    """Teach `model(...)` to score next tokens without building its logits.

    Afterwards `model(**inputs, scored_rows=..., scored_columns=..., scored_targets=...)` runs the backbone, gathers
    the hidden states of the scored positions and returns a `ScoringOutput`, of which `scored_outputs` names the
    fields to compute; with `subtree_end` it runs in the trie layout. Any other call is the model's own. Wrappers
    (PEFT, DDP, FSDP) may be put around the model before or after. Calling again changes nothing.

    Args:
        model: A causal language model of transformers (a `PreTrainedModel`).
    """
    if hasattr(model, "_forward_without_scoring"):
        return

    @functools.wraps(type(model).forward)  # `generate` reads in the signature what to prepare
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    model._forward_without_scoring = model.forward
    model.forward = types.MethodType(forward, model)


def _forward(
    self: Any,
    *args: Any,
    scored_rows: torch.Tensor | None = None,
    scored_columns: torch.Tensor | None = None,
    scored_targets: torch.Tensor | None = None,
    scored_outputs: tuple[str, ...] = ("log_probs",),
    subtree_end: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    layout = nullcontext() if subtree_end is None else trie_layout(kwargs["position_ids"], subtree_end)
    if scored_targets is None:
        with layout:
            return self._forward_without_scoring(*args, **kwargs)
    kwargs.pop("labels", None)  # PEFT passes `labels=None` on, and backbones do not know it
    with layout:
        backbone_output = self.base_model(*args, **kwargs)

    # Looked up on each call: FSDP and PEFT replace the head after this function was installed
    head = self.get_output_embeddings()
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    if isinstance(weight, DTensor):  # FSDP2 shards the head
        weight = weight.full_tensor()
        bias = None if bias is None else bias.full_tensor()
    hidden = backbone_output.last_hidden_state[scored_rows, scored_columns].to(weight.device)  # (S, H)
    scale, softcap = logit_transform(self.config)
    with maybe_gather_lm_head_ctx(weight, bias):  # DeepSpeed ZeRO-3 shards it too
        scores = gather_logprobs(
            hidden,
            weight,
            scored_targets.to(weight.device),
            bias=bias,
            logit_scale=scale,
            softcap=softcap,
            outputs=scored_outputs,
        )
    aux_loss = None
    if kwargs.get("output_router_logits"):
        aux_loss = _load_balancing_loss(self.config, backbone_output.router_logits, kwargs.get("attention_mask"))
    return ScoringOutput(**vars(scores), aux_loss=aux_loss)
