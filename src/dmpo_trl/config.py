"""Configuration of `DMPOTrainer`."""

import math
import multiprocessing
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available, logging
from trl import DPOConfig

logger = logging.get_logger(__name__)


@dataclass
class DMPOConfig(DPOConfig):
    """Configuration of `DMPOTrainer`: every parameter of [`~trl.DPOConfig`], and those below.

    Defaults that differ from `DPOConfig`: `loss_type` is `["dmpo"]`, and `bf16` is False where the device does not
    compute in bf16, for instance on a CPU. On CUDA, `dataloader_num_workers` is 2 and batches are copied while the GPU
    computes (`accelerator_config={"non_blocking": True}`), so that it need not wait for them.
    `logging_nan_inf_filter` is False: training stops at a loss that is no number, or in float16 logs it.
    `learning_rate` (1e-6) and `beta` (0.1) are TRL's, which are meant for all weights of a large model; with LoRA
    begin at 1e-4 (`docs/losses.md`).

    Parameters:
        > Parameters that control the data preprocessing

        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            What to do with a sequence longer than `max_length`. TRL's `"keep_start"` cuts its end, and drops an
            example whose prompt alone is as long; `"keep_end"` (deprecated in TRL) cuts its beginning;
            `"keep_completion"` is ours: it shortens the prompt from the left by what its longest completion needs, so
            that no completion is ever cut. In recommendation a completion cut short names another item.
        special_tokens_in_text (`bool`, *optional*):
            Whether a special token may be written as text in the data. By default it may in plain-text rows, which
            can have been rendered with a chat template, as in TRL, and may not in messages: whatever their content
            is, only the chat template writes special tokens. With `False` special tokens stay text in
            plain-text rows too, and so do, in both kinds of rows, other added tokens that the chat template names;
            `dmpo-trl train` sets it for a folder that `dmpo-trl prepare` wrote, where anybody may have written the
            titles. `True` is TRL's way for both.

        > Parameters that control the training

        loss_type (`list[str]`, *optional*, defaults to `["dmpo"]`):
            `"dmpo"` (arXiv 2405.16127), `"softmax"` (S-DPO, arXiv 2406.09215), or any loss of `DPOConfig`, averaged
            over the pairs of an example. Several are added up with `loss_weights`. With one rejected completion
            `"dmpo"`, `"softmax"` and `"sigmoid"` are the same number. `"sampled_softmax"` and `"mppo"` (arXiv
            2412.15244) have no reference: where no loss has one, no reference model is loaded. `"mult_dpo"` (arXiv
            2606.10078) is for rows with several chosen completions. docs/losses.md has them all.
        negative_selection (`str`, *optional*, defaults to `"all"`):
            Which rejected completions of an example count in its loss: `"all"`, or `"boundary"` (DynamicPO, arXiv
            2605.00327), those at the decision boundary, each with a beta of its own. It goes with any loss.
        prefix_sharing (`str` or `bool`, *optional*, defaults to `"auto"`):
            Whether completions share what they begin with, so that it is computed once. `"auto"` does where a probe
            before the first step finds the model's numbers unchanged by it, and says so where not; `True` does or
            raises; `False` computes a copy of the prompt for every completion.
        block_attention (`bool`, *optional*, defaults to `True`):
            Whether shared prefixes are attended to block by block on CUDA, with FlexAttention, where model and probe
            allow it and Triton is installed: blocks that a token does not see cost nothing, and a batch is one row.
            `False`, a CPU and other models attend with dense masks. docs/prefix-sharing.md says more.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            Those of `transformers`, and `"group_by_prompt"`: examples whose prompts share at least half of their
            tokens (the same history) come in the same batch, so that prefix sharing computes the history once; batches
            are in random order. Over three seeds (`docs/cost.md`, "What grouping does to learning") the held-out
            accuracy was 0.067 +/- 0.035 lower with it than in random order, after as many steps.
        min_groups_per_step (`int`, *optional*, defaults to `4`):
            With `"group_by_prompt"`: an optimizer step has room for this many histories. The examples of one long
            history would fill batches alone, and gradients that point the same way make training unsteady. Two
            examples of a history stay together, so that a step of fewer than twice as many examples has fewer
            histories. It has no effect with `max_tokens_per_batch`.
        max_tokens_per_batch (`int`, *optional*):
            Form batches of at most this many tokens (as laid out, padding counted) and at most
            `per_device_train_batch_size` examples. An example that alone has more is a batch of its own. The batches
            are formed once, in the order of `train_sampling_strategy` (`"random"`, `"sequential"` or
            `"group_by_prompt"`), and come in another order each epoch. A batch's loss is the mean over its examples,
            so an example weighs less in a batch that holds many. The effect on learning is not measured.
        allow_changed_run (`bool`, *optional*, defaults to `False`):
            Whether training may be resumed with another objective or other data than the checkpoint was written with
            (another dataset, order of the rows, loss, reference or base model). A warning then names what differs;
            otherwise it is an error.

    Raises:
        ValueError: An option has a value that there is not, a number out of its range (`beta` must be above 0) or not
            finite, or two options exclude one another. The message names them.

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
    negative_selection: str = field(
        default="all",
        metadata={
            "help": "Which rejected completions of an example count in its loss: 'all', or 'boundary' (DynamicPO), "
            "those at the decision boundary, each with a beta of its own.",
            "choices": ["all", "boundary"],
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
    special_tokens_in_text: bool | None = field(
        default=None,
        metadata={
            "help": "Whether a special token may be written as text in the data. Default: in plain-text rows it may, "
            "in messages and in what `dmpo-trl prepare` wrote it stays text."
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
    min_groups_per_step: int = field(
        default=4,
        metadata={
            "help": "With train_sampling_strategy 'group_by_prompt': an optimizer step has room for this "
            "many histories."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Form batches of at most this many tokens, padding counted, and at most "
            "per_device_train_batch_size examples."
        },
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={
            "help": "Resume also where the dataset, the order of the rows, the loss or the reference is not that of "
            "the checkpoint; a warning names what differs."
        },
    )
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]  # None: not asked for
        default=None,
        metadata={
            "help": "Number of processes that lay batches out while others are computed. Default: 2 on CUDA where "
            "processes are forked, else 0 (in the main process)."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are not numbers out of the logs. Off: training stops at one, or in float16 "
            "logs it. Each step would read the loss from the GPU for it."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]  # None as in `DPOConfig`: not asked for
        default=None,
        metadata={
            "help": "Whether to use bf16 (mixed) precision instead of 32-bit. If not set, it is used where the device "
            "computes in it and `fp16` is not set; a CPU trains in float32."
        },
    )
    prefix_sharing: str = field(  # True and False too; the argument parsers know no `str | bool`
        default="auto",
        metadata={
            "help": "Whether completions share what they begin with, so that it is computed once: 'auto' where a "
            "probe finds it right for the model, 'true' (or an error), 'false' (a copy of the prompt per completion)."
        },
    )

    block_attention: bool = field(
        default=True,
        metadata={
            "help": "Whether shared prefixes are attended to block by block on CUDA (FlexAttention), where model and "
            "probe allow it; otherwise with dense masks."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is not False and not _computes_bf16(self.use_cpu):
            self._without_bf16()
        self._check_numbers()
        self._feed_device()
        super().__post_init__()
        choices = {"auto": "auto", "true": True, "false": False}
        choice = str(self.prefix_sharing).lower()
        if choice not in choices:
            raise ValueError(f"`prefix_sharing` must be 'auto', True or False, got {self.prefix_sharing!r}.")
        self.prefix_sharing = choices[choice]  # type: ignore[assignment]
        if self.negative_selection not in ("all", "boundary"):
            raise ValueError(f"`negative_selection` must be 'all' or 'boundary', got {self.negative_selection!r}.")
        if self.min_groups_per_step < 1:
            raise ValueError(f"`min_groups_per_step` must be at least 1, got {self.min_groups_per_step}.")
        if self.max_tokens_per_batch is not None:
            if self.max_tokens_per_batch < 1:
                raise ValueError(f"`max_tokens_per_batch` must be at least 1, got {self.max_tokens_per_batch}.")
            if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
                raise ValueError(
                    f"`max_tokens_per_batch` and `train_sampling_strategy={self.train_sampling_strategy!r}` both "
                    "decide which examples make a batch: choose 'random', 'sequential' or 'group_by_prompt'."
                )

    def _without_bf16(self) -> None:
        """Train in float32 where nothing else was asked for: `DPOConfig` takes bf16, and fails without a GPU."""
        if self.bf16 is None:
            self.bf16 = False
            if not self.fp16:
                logger.warning_once("No device for bf16 is in use: training in float32.")
        elif not self.use_cpu:
            raise ValueError(
                "`bf16=True` was asked for, and no device here computes in bf16. Leave `bf16` out, or set it to "
                "False, to train in float32. With `use_cpu=True` bf16 runs on the CPU, which is slow on most of them."
            )

    def _feed_device(self) -> None:
        """Lay batches out and copy them while a GPU computes, where nothing else was asked for."""
        on_cuda = _trains_on_cuda(self.use_cpu)
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 2 if on_cuda and _forks() else 0
        if self.accelerator_config is None and on_cuda and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}

    def _check_numbers(self) -> None:
        """Refuse numbers that would fail later, with an error that does not name the option."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, value in vars(self).items():
            # An infinite norm is allowed: it clips no gradient
            if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("max_grad_norm", math.inf):
                raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if self.beta <= 0:
            raise ValueError(
                f"`beta` must be above 0, got {self.beta}: 0 leaves nothing to learn from, and below it the rejected "
                "completions are preferred."
            )
        for name in ("seed", "data_seed"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"`{name}` must be at least 0 and below 2**32, got {getattr(self, name)}.")


_DEFAULTS = {one.name: one.default for one in fields(DMPOConfig)}


def option(args: TrainingArguments, name: str) -> Any:
    """Return an option of [`DMPOConfig`], which has its default where a trainer was given a config of its parents.

    Example:
        >>> option(DPOConfig("out", bf16=False), "prefix_sharing")
        'auto'
    """
    return getattr(args, name, _DEFAULTS[name])


def _trains_on_cuda(use_cpu: bool) -> bool:
    return not use_cpu and torch.cuda.is_available()


def _forks() -> bool:
    """Return whether processes are forked: else each imports the script again, which need not be written for it."""
    return (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"


def _computes_bf16(use_cpu: bool) -> bool:
    """Return whether training will be on a device that transformers lets compute in bf16 by default."""
    return not use_cpu and (is_torch_bf16_gpu_available() or is_torch_xla_available())
