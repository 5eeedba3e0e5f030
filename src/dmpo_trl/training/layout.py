"""Layout of a run's batches: whether prefixes are shared, decided once for policy, reference and all processes."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from ..batching.collator import DataCollatorForMultiPreference
from ..modeling.attention import attends_in_blocks, plain_attention, use_trie_attention
from ..modeling.loading import base_model_of
from ..modeling.probe import prepare_for_scoring, require_finite_logits
from ..modeling.quantization import keep_trainable
from ..modeling.row_plan import RowPlan, plan_for
from ..modeling.scoring_head import add_scoring_head
from .distributed import gathered_parameters

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the batches of a run are laid out.

    Attributes:
        prefix_sharing: Trie layout, or a copy of the prompt for every completion.
        plan: How the trees of a batch make rows.
    """

    prefix_sharing: bool
    plan: RowPlan

    def collator(self, trl_collator: DataCollatorForPreference) -> DataCollatorForMultiPreference:
        """Make the collator of this layout, with the parameters that TRL made its own from (padding, truncation)."""
        # The padding of copies has positions of its own, which a model that learned its positions may not have
        multiple = math.lcm(trl_collator.pad_to_multiple_of or 1, self.plan.multiple if self.prefix_sharing else 1)
        return DataCollatorForMultiPreference(
            pad_token_id=trl_collator.pad_token_id,
            max_length=trl_collator.max_length,
            truncation_mode=trl_collator.truncation_mode,
            prefix_sharing=self.prefix_sharing,
            **self.plan.options() | {"pad_to_multiple_of": multiple},
        )


def choose_layout(
    model: Any,
    ref_model: Any | None,
    mode: str | bool,
    accelerator: Accelerator,
    *,
    compiles: bool = False,
    in_blocks: bool = True,
) -> Layout:
    """Install the scoring heads, probe the models, and decide how batches are laid out.

    Policy and reference get the same layout, in every process: in half precision each layout rounds its own way.

    Args:
        model: The policy, wrapped or not.
        ref_model: The reference; None where the policy without its adapter, or a table, takes its place.
        mode: `"auto"`, True or False; see `DMPOConfig.prefix_sharing`.
        accelerator: Knows the device and the other processes.
        compiles: Whether `torch.compile` will compile the policy, anew for each packing of trees.
        in_blocks: Whether models may attend in blocks where they can; see `DMPOConfig.block_attention`.

    Raises:
        ValueError: `mode` is True and a model cannot share prefixes, or logits are not finite.
    """
    models = [model] if ref_model is None else [model, ref_model]
    base_models = [base_model_of(one) for one in models]
    policy, device_type = base_models[0], accelerator.device.type
    one_row = device_type if in_blocks and not compiles else None  # where rows may be for attention in blocks
    for one, base_model in zip(models, base_models, strict=True):
        if attends_in_blocks(base_model.config._attn_implementation):  # of another run, maybe on another device
            base_model.set_attn_implementation(plain_attention(base_model))
        remove_fused_lm_head(base_model)
        keep_trainable(one)  # the reference too: it must round as the policy does
    with gathered_parameters(model):
        require_finite_logits(model, policy)
        share = prepare_for_scoring(model, policy, mode, device_type=one_row)
    blocks = attends_in_blocks(policy.config._attn_implementation)
    for reference in base_models[1:]:
        add_scoring_head(reference)  # its class is then the policy's, if it was before
        if type(reference) is type(policy):  # computes as the policy does: no second probe of the trie
            with gathered_parameters(reference):
                require_finite_logits(reference, reference)
                prepare_for_scoring(reference, reference, False)
            if share:
                use_trie_attention(reference, blocks=blocks)
        else:
            found_mode, own_row = (mode, one_row) if share else (False, None)
            share = prepare_for_scoring(reference, reference, found_mode, device_type=own_row) and share
            blocks = blocks and attends_in_blocks(reference.config._attn_implementation)
    decision = [share, blocks, *(base_model.scores_own_logits for base_model in base_models)]
    if device_type == "cuda":
        warn_of_float32_weights(policy)
    broadcast_object_list(decision, from_process=0)
    share, blocks, *own_logits = decision
    for base_model, scores_own_logits in zip(base_models, own_logits, strict=True):
        base_model.scores_own_logits = scores_own_logits
        if share:  # also where this process's own probe found otherwise
            use_trie_attention(base_model, blocks=blocks)
    names = [base_model.config._attn_implementation for base_model in base_models]
    if not blocks:  # rows for the attention that both have
        names = [name.removesuffix("_blocks") for name in names]
    return Layout(prefix_sharing=share, plan=plan_for(device_type, names, policy.config, compiles=compiles))


def warn_of_float32_weights(model: Any) -> None:
    """Warn of frozen matrices in float32, which autocast casts anew in every forward pass.

    Args:
        model: The transformers model of the policy, with an adapter or without.
    """
    frozen = sum(
        weight.numel() for weight in model.parameters() if not weight.requires_grad and weight.dtype == torch.float32
    )
    if 2 * frozen > sum(weight.numel() for weight in model.parameters()):
        logger.warning(
            f"{frozen:,} frozen weights are float32: on a GPU they take twice the memory of bfloat16, and with "
            "`bf16=True` each forward pass casts them again. Set `dtype=bfloat16` (of the command, or in "
            "`model_init_kwargs`)."
        )


def remove_fused_lm_head(model: Any) -> None:
    """Undo TRL's `add_fused_lm_head`, in whose place the scoring head stands.

    TRL's forward holds the model that it was made for: a deep copy would compute with the weights of the original, and
    neither would be freed by `del`.

    Args:
        model: A transformers model.
    """
    function = getattr(vars(model).get("forward"), "__func__", None)
    if function is None or function.__globals__["__name__"] != add_fused_lm_head.__module__:
        return
    del model.forward
    replaced = inspect.getclosurevars(function).nonlocals["original_forward"]
    if getattr(replaced, "__func__", None) is not type(model).forward:  # such as a hook of accelerate
        model.forward = replaced
