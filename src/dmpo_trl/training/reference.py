"""Reference policy: the initial model, and the key to the cache of its log-probs."""

import copy
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_peft_model
from datasets.fingerprint import Hasher
from trl import DPOConfig

from ..losses import registered
from ..modeling.fingerprint import config_of
from ..modeling.loading import base_model_of
from ..preprocessing.format import REFERENCE_COLUMNS
from .layout import remove_fused_lm_head

logger = logging.getLogger(__name__)


def initial_policy(model: Any, args: DPOConfig, peft_config: Any = None) -> Any:
    """Copy the policy as it was passed, to be the reference that no step changes.

    TRL loads the reference by the policy's path, which is another model where the policy was changed in memory since:
    trained before in the same notebook, or given new tokens.

    Args:
        model: The policy, as the trainer got it.
        args: The training arguments.
        peft_config: An adapter that the trainer will put on the policy.

    Returns:
        The copy; None where TRL's reference is the initial policy: it loads both from one path, takes the adapter off,
        or computes the reference's log-probs before the first step.

    Example:
        >>> initial_policy("Qwen/Qwen3-0.6B", args=None) is None
        True
    """
    if isinstance(model, str) or is_peft_model(model) or peft_config is not None:
        return None
    sharded = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if args.precompute_ref_log_probs and not sharded:  # FSDP shards the policy too late to compute with it before
        return None
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        logger.warning(
            "With DeepSpeed ZeRO-3 a model cannot be copied: the reference is loaded from %r. Where the model was "
            "changed since it was loaded, save it and pass its folder.",
            model.config.name_or_path,
        )
        return None
    remove_fused_lm_head(base_model_of(model))  # left by another trainer of TRL: a copy would compute with its model
    return copy.deepcopy(model).eval()


def needs_reference(args: DPOConfig, ref_model: Any) -> bool:
    """Return whether a loss of the run uses the reference's log-probs.

    Args:
        args: The training arguments.
        ref_model: The reference that the trainer was given. A warning says where it is not used.

    Raises:
        ValueError: A loss is unknown, or `sync_ref_model` has nothing to synchronise.

    Example:
        >>> from dmpo_trl import DMPOConfig
        >>> needs_reference(DMPOConfig("out", loss_type=["sampled_softmax"], bf16=False), None)
        False
    """
    if any(loss.reference for loss in registered(args.loss_type)):
        return True
    without = f"loss_type={args.loss_type} has no reference"
    _check_unused(args, ref_model, without, ": leave it out, or choose a loss such as 'dmpo'", "")
    return False


def _check_unused(args: DPOConfig, ref_model: Any, why: str, remedy: str, where: str) -> None:
    """Refuse to synchronise a reference model that is not used, and warn of one that was given."""
    if args.sync_ref_model:
        raise ValueError(f"`sync_ref_model=True`, but {why}{remedy}.")
    if ref_model is not None:
        logger.warning("`ref_model` has no effect%s: %s.", where, why)


def reference_is_given(args: DPOConfig, ref_model: Any, columns: Collection[str]) -> bool:
    """Return whether the training rows bring the log-probs of a reference, which take the place of any model's.

    Args:
        args: The training arguments.
        ref_model: The reference that the trainer was given. A warning says that it is not used.
        columns: Of the training dataset.

    Raises:
        ValueError: `sync_ref_model` has nothing to synchronise.
    """
    if not set(REFERENCE_COLUMNS) <= set(columns):
        return False
    chosen, rejected = REFERENCE_COLUMNS
    brought = f"the training rows bring the reference's log-probs (`{chosen}` and `{rejected}`)"
    _check_unused(args, ref_model, brought, ", which stay as they are: leave one of them out", " in training")
    return True


@contextmanager
def options_of_parent(args: DPOConfig, has_reference: bool) -> Iterator[None]:
    """Give the parent's constructor options that it knows in place of those that only exist here.

    Args:
        args: The training arguments; they are as before when the constructor has ended.
        has_reference: Whether a loss uses the reference. Without one the parent is told that log-probs will be
            precomputed: then it loads no model for them.
    """
    loss_types, precompute = args.loss_type, args.precompute_ref_log_probs
    # The parent checks options against the loss types that it knows, and ours are like "sigmoid" to it
    args.loss_type = ["sigmoid" if name in ("dmpo", "softmax", "mult_dpo") else name for name in loss_types]
    args.precompute_ref_log_probs = precompute or not has_reference
    try:
        yield
    finally:
        args.loss_type, args.precompute_ref_log_probs = loss_types, precompute


def cache_key(
    reference_hash: str | None, reference: Any, args: DPOConfig, accelerator: Accelerator, collator: Any
) -> str:
    """Hash everything that decides the reference's log-probs of a dataset; TRL's hashes its weights alone.

    Args:
        reference_hash: Hash of the reference's weights.
        reference: The reference, or the policy in its place.
        args: The training arguments.
        accelerator: Knows the mixed precision.
        collator: Knows whether prefixes are shared, which rounds in another way.
    """
    base_model = base_model_of(reference)
    config = config_of(reference)
    layout = getattr(collator, "prefix_sharing", None)
    head = (type(base_model).__qualname__, getattr(base_model, "scores_own_logits", False))
    options = (args.ld_alpha, args.max_length, args.truncation_mode, accelerator.mixed_precision, layout)
    return Hasher.hash((reference_hash, config, head, *options))
