"""Configuration of `DMPOTrainer`."""

import math
from dataclasses import dataclass, field

from trl import DPOConfig


@dataclass
class DMPOConfig(DPOConfig):
    """Configuration of `DMPOTrainer`: every parameter of [`~trl.DPOConfig`], and those below.

    Defaults that differ from `DPOConfig`: `loss_type` is `["dmpo"]`.

    Parameters:
        > Parameters that control the data preprocessing

        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            What to do with a sequence longer than `max_length`. TRL's `"keep_start"` cuts its end, and drops an
            example whose prompt alone is as long; `"keep_end"` (deprecated in TRL) cuts its beginning;
            `"keep_completion"` is ours: it shortens the prompt from the left by what its longest completion needs, so
            that no completion is ever cut. In recommendation a completion cut short names another item.

        > Parameters that control the training

        loss_type (`list[str]`, *optional*, defaults to `["dmpo"]`):
            `"dmpo"` (arXiv 2405.16127), `"softmax"` (S-DPO, arXiv 2406.09215), or any loss of `DPOConfig`, averaged
            over the pairs of an example. Several are added up with `loss_weights`. With one rejected completion
            `"dmpo"`, `"softmax"` and `"sigmoid"` are the same number.
        prefix_sharing (`str` or `bool`, *optional*, defaults to `"auto"`):
            Whether to compute every distinct prefix of a batch once. `"auto"` does where a probe before the first
            step finds the model's numbers unchanged by it, and says so where not; `True` does or raises; `False`
            computes a copy of the prompt for every completion.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            Those of `transformers`, and `"group_by_prompt"`: examples whose prompts share at least half of their
            tokens (the same history) come in the same batch, so that prefix sharing computes the history once; batches
            are in random order. It changes what stands together in a batch; its effect on learning is not measured.
        max_tokens_per_batch (`int`, *optional*):
            Form batches of at most so many tokens (as laid out, padding counted) and at most
            `per_device_train_batch_size` examples. An example that alone has more is a batch of its own. The batches
            are formed once, in the order of `train_sampling_strategy` (`"random"`, `"sequential"` or
            `"group_by_prompt"`), and come in another order each epoch. A batch's loss is the mean over its examples,
            so an example weighs less in a batch that holds many. The effect on learning is not measured.

    Example:
        >>> args = DMPOConfig("out", loss_type=["dmpo", "sft"], loss_weights=[1.0, 0.2], bf16=False)
        >>> args.loss_type, args.prefix_sharing
        (['dmpo', 'sft'], 'auto')
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["dmpo"],
        metadata={
            "help": "Type of loss to use: 'dmpo', 'softmax' (S-DPO), or any loss of DPOConfig, averaged over the "
            "pairs of an example. Several are added up with the weights in `loss_weights`."
        },
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "What to do with a sequence longer than `max_length`: 'keep_start' cuts its end (as TRL does), "
            "'keep_completion' shortens the prompt from the left so that no completion is cut. 'keep_end' is "
            "deprecated.",
            "choices": ["keep_completion", "keep_end", "keep_start"],
        },
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Sampler for training: 'random', 'sequential', 'group_by_length', 'batch_rebalance', or "
            "'group_by_prompt', which puts examples of the same history into the same batch.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance", "group_by_prompt"],
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Form batches of at most so many tokens, padding counted, and at most per_device_train_batch_size "
            "examples."
        },
    )
    prefix_sharing: str = field(  # True and False too; the argument parsers know no `str | bool`
        default="auto",
        metadata={
            "help": "Whether to compute every distinct prefix of a batch once: 'auto' where a probe finds it right "
            "for the model, 'true' (or an error), 'false' (a copy of the prompt for every completion)."
        },
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        super().__post_init__()
        choices = {"auto": "auto", "true": True, "false": False}
        choice = str(self.prefix_sharing).lower()
        if choice not in choices:
            raise ValueError(f"`prefix_sharing` must be 'auto', True or False, got {self.prefix_sharing!r}.")
        self.prefix_sharing = choices[choice]  # type: ignore[assignment]
        if self.max_tokens_per_batch is not None:
            if self.max_tokens_per_batch < 1:
                raise ValueError(f"`max_tokens_per_batch` must be at least 1, got {self.max_tokens_per_batch}.")
            if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
                raise ValueError(
                    f"`max_tokens_per_batch` and `train_sampling_strategy={self.train_sampling_strategy!r}` both "
                    "decide which examples make a batch: choose 'random', 'sequential' or 'group_by_prompt'."
                )

    def _check_numbers(self) -> None:
        """Refuse numbers that end in an error without a name somewhere in the training."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, value in vars(self).items():
            # Of an infinite norm no gradient is clipped
            if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("max_grad_norm", math.inf):
                raise ValueError(f"`{name}` must be a finite number, got {value}.")
        for name in ("seed", "data_seed"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"`{name}` must be at least 0 and below 2**32, got {getattr(self, name)}.")
