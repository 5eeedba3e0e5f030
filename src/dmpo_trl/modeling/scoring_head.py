"""Scoring head: log-probs of chosen next tokens instead of logits, behind the model's own `forward`."""

import functools
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from .attention import trie_layout
from .aux_loss import load_balancing_loss
from .logprobs import TokenLogProbs, gather_logprobs, logprobs_of_logits


@dataclass
class ScoringOutput(ModelOutput):
    """Output of a forward with `scored_rows`: one value for each scored pair, (S,), or None where not asked for.

    Attributes:
        log_probs: Log-prob of the target, in nats. The only differentiable one.
        entropy: Entropy of the next-token distribution, in nats.
        mean_logits: Mean of the logits over the vocabulary.
        is_top1: Whether the target is the most likely token.
        log_sum_sq_probs: `log sum_v p(v)^2`, which WPO's weights use.
        logits: The model's own logits at the scored positions, (S, V): what everything else is tested against.
        aux_loss: Load-balancing loss of a mixture of experts, a scalar.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    log_sum_sq_probs: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """Return the scale and the soft-cap that a model applies to its logits: `softcap * tanh(scale * z / softcap)`.

    Architectures name the scale differently; `prepare_for_scoring` compares the outcome with the model's own numbers.

    Args:
        config: Config of the model.

    Example:
        >>> from transformers import Gemma2Config, GraniteConfig
        >>> logit_transform(Gemma2Config())
        (1.0, 30.0)
        >>> logit_transform(GraniteConfig(logits_scaling=8.0))
        (0.125, None)
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
    the model's own.

    The model's class is replaced by a subclass with the same name, as FSDP2 does. Wrappers (PEFT, DDP, FSDP) may be
    put around the model before or after. Calling again changes nothing.

    Args:
        model: A causal language model of transformers (a `PreTrainedModel`).

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
        >>> add_scoring_head(model)
        >>> row, column, target = torch.tensor([[0], [1], [7]])
        >>> output = model(torch.tensor([[3, 4, 5]]), scored_rows=row, scored_columns=column, scored_targets=target)
        >>> output.log_probs.shape
        torch.Size([1])
    """
    if not isinstance(model, ScoringModel):
        cls: Any = type(model)
        _become(model, _scoring_class(cls))
    _scoring_head_of(model)


class _Pickled:
    """Mix-in of an object whose class has the name of another, by which pickle would look it up."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        _, (cls, *arguments), *state = reduced
        mixin, own = cls.__bases__
        return _unpickled, (mixin, own, *arguments), *state


class ScoringModel(_Pickled):
    """Mark of a model that `add_scoring_head` was called with.

    Attributes:
        scores_own_logits: Score through the model's own logits, because the head computes something else.
    """

    scores_own_logits = False
    _instance_forward: Any = None
    _forward_without_autocast: Any = None


@functools.cache
def _scoring_class(cls: Any) -> type:
    """Subclass of a model's class with the scoring arguments, under the same name."""
    own_forward = cls.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = functools.partial(own_forward, self) if self._instance_forward is None else self._instance_forward
        if kwargs.keys().isdisjoint(_SCORING_ARGUMENTS):
            return own(*args, **kwargs)
        return _forward(self, self._forward_without_autocast or own, *args, **kwargs)

    # `generate` reads in the signature what to prepare. Without `__wrapped__`, which accelerate follows to the end
    forward.__signature__ = inspect.signature(own_forward)  # type: ignore[attr-defined]
    forward.__doc__ = own_forward.__doc__
    return _subclass(cls, ScoringModel, {"forward": forward})


class ScoringHead(_Pickled):
    """Mix-in of an output projection: with targets, the module gives their log-probs instead of logits.

    The module is called in either case, so that the hooks of whatever shards its parameters (FSDP2, DeepSpeed ZeRO-3,
    tensor parallelism) make them whole, in the backward pass too.
    """

    _instance_forward: Any = None

    def forward(self, *args: Any, scored_targets: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Compute logits, or with `scored_targets` the fields of `TokenLogProbs`; `kwargs` are `gather_logprobs`'s."""
        if scored_targets is None:
            own = super().forward if self._instance_forward is None else self._instance_forward  # type: ignore[misc]
            return own(*args, **kwargs)
        (hidden,) = args
        weight: Any = self.weight  # type: ignore[attr-defined]
        bias: Any = getattr(self, "bias", None)
        if isinstance(weight, DTensor):  # tensor parallelism
            weight = weight.full_tensor()
            bias = None if bias is None else bias.full_tensor()
        targets = scored_targets.to(weight.device)
        scores = gather_logprobs(hidden.to(weight.device), weight, targets, bias=bias, **kwargs)
        return tuple(vars(scores).values())


@functools.cache
def _scoring_head_class(cls: Any) -> type:
    return _subclass(cls, ScoringHead, {})


def _scoring_head_of(model: Any) -> Any:
    """Return the model's output projection, able to score. FSDP and PEFT may have exchanged it since the last call."""
    head = model.get_output_embeddings()
    if head is not None and not isinstance(head, ScoringHead):
        cls: Any = type(head)
        _become(head, _scoring_head_class(cls))
    return head


def _subclass(cls: type, mixin: type, namespace: dict[str, Any]) -> type:
    # Under the name of the class it stands for, which saved configs and lookups by module read
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (mixin, cls), names | namespace)


def _unpickled(mixin: type, cls: type, *arguments: Any) -> Any:
    subclass = _scoring_class(cls) if issubclass(mixin, ScoringModel) else _scoring_head_class(cls)
    return subclass.__new__(subclass, *arguments)


def _become(module: Any, cls: type) -> None:
    module.__class__ = cls
    # accelerate puts a forward on the instance, which would go before that of the class: for device maps, or one with
    # autocast, and then it notes the one without. Scores are in the precision of the weights.
    if "forward" in vars(module):
        module._instance_forward = vars(module).pop("forward")
        module._forward_without_autocast = vars(module).pop("_original_forward", None)


_SCORING_ARGUMENTS = {"scored_targets", "subtree_end", "num_copies", "scored_outputs", "scored_rows", "scored_columns"}


def _forward(
    self: Any,
    own_forward: Any,
    *args: Any,
    scored_rows: torch.Tensor | None = None,
    scored_columns: torch.Tensor | None = None,
    scored_targets: torch.Tensor | None = None,
    scored_outputs: tuple[str, ...] = ("log_probs",),
    subtree_end: torch.Tensor | None = None,
    num_copies: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    by_own_logits = scored_targets is None or self.scores_own_logits or "logits" in scored_outputs
    forward = own_forward if by_own_logits else self.base_model
    if scored_targets is not None:
        kwargs.pop("labels", None)  # PEFT passes `labels=None` on, and backbones do not know it
    with nullcontext() if subtree_end is None else trie_layout(kwargs["position_ids"], subtree_end):
        output = forward(*args, **kwargs)
    if scored_targets is None:
        return output

    logits = None
    if by_own_logits:
        logits = _picked(output.logits, scored_rows, scored_columns)  # (S, V)
        scores = logprobs_of_logits(logits, scored_targets.to(logits.device), outputs=scored_outputs)
    else:
        hidden = _picked(output.last_hidden_state, scored_rows, scored_columns)  # (S, H)
        scale, softcap = logit_transform(self.config)
        options = {"logit_scale": scale, "softcap": softcap, "outputs": scored_outputs}
        scores = TokenLogProbs(*_scoring_head_of(self)(hidden, scored_targets=scored_targets, **options))
    aux_loss = None
    if kwargs.get("output_router_logits"):
        token_weights = kwargs.get("attention_mask") if num_copies is None else num_copies
        aux_loss = load_balancing_loss(self.config, output.router_logits, token_weights)
    # Where the model is spread over devices, the head may be on another than the inputs are
    own_device = {name: None if x is None else x.to(scored_targets.device) for name, x in vars(scores).items()}
    return ScoringOutput(**own_device, logits=logits if "logits" in scored_outputs else None, aux_loss=aux_loss)


def _picked(values: torch.Tensor, rows: Any, columns: Any) -> torch.Tensor:
    return values[rows.to(values.device), columns.to(values.device)]
