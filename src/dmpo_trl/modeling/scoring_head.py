"""A second face for `model.forward`: log-probs of chosen (position, next token) pairs instead of logits."""

import functools
import types
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from .attention import trie_layout
from .load_balancing import load_balancing_loss
from .logprobs import TokenLogProbs, gather_logprobs


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


def add_scoring_head(model: Any) -> None:
    """Teach `model(...)` to score next tokens without building its logits.

    Afterwards `model(**inputs, scored_rows=..., scored_columns=..., scored_targets=...)` runs the backbone, gathers
    the hidden states of the scored positions and returns a `ScoringOutput`, of which `scored_outputs` names the
    fields to compute; with `subtree_end` it runs in the trie layout, and with `output_router_logits` it computes the
    load-balancing loss too, in which `num_copies` (default: the attention mask) weighs the tokens. Any other call is
    the model's own. Wrappers (PEFT, DDP, FSDP) may be put around the model before or after. Calling again changes
    nothing.

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
    num_copies: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    layout = nullcontext() if subtree_end is None else trie_layout(kwargs["position_ids"], subtree_end)
    if scored_targets is None:
        with layout:
            return self._forward_without_scoring(*args, **kwargs)
    kwargs.pop("labels", None)  # PEFT passes `labels=None` on, and backbones do not know it
    with layout:
        backbone_output = self.base_model(*args, **kwargs)

    scores = _run_head(
        self.get_output_embeddings(),  # looked up on each call: FSDP and PEFT replace it after this was installed
        backbone_output.last_hidden_state[scored_rows, scored_columns],  # (S, H)
        scored_targets,
        self.config,
        scored_outputs,
    )
    aux_loss = None
    if kwargs.get("output_router_logits"):
        token_weights = kwargs.get("attention_mask") if num_copies is None else num_copies
        aux_loss = load_balancing_loss(self.config, backbone_output.router_logits, token_weights)
    return ScoringOutput(**vars(scores), aux_loss=aux_loss)


def _run_head(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, config: PretrainedConfig, outputs: tuple[str, ...]
) -> TokenLogProbs:
    """`gather_logprobs` in the place of the head's own forward.

    A module is called, so that whatever shards its parameters has them whole by then, and in the backward pass.
    """
    scale, softcap = logit_transform(config)

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight: Any = head.weight
        bias: Any = getattr(head, "bias", None)
        if isinstance(weight, DTensor):  # tensor parallelism
            weight = weight.full_tensor()
            bias = None if bias is None else bias.full_tensor()
        scores = gather_logprobs(
            hidden.to(weight.device),
            weight,
            targets.to(weight.device),
            bias=bias,
            logit_scale=scale,
            softcap=softcap,
            outputs=outputs,
        )
        return tuple(vars(scores).values())

    had = vars(head).get("forward")
    head.forward = forward
    try:
        return TokenLogProbs(*head(hidden))
    finally:
        if had is None:
            del head.forward
        else:
            head.forward = had
