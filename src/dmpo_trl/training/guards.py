"""Guards around a step: no kernel that is known to be wrong, and no gradient that is not a number."""

from typing import Any

import torch
from accelerate import DistributedType
from trl import DPOTrainer

from ..modeling.backends import masks_off_cudnn
from ..modeling.loading import base_model_of
from .checks import check_gradient


class GuardedTrainer(DPOTrainer):
    """`DPOTrainer` whose steps use no kernel that is known to be wrong, and that stops before NaN reaches a weight."""

    accelerator: Any
    model: Any
    state: Any

    @property
    def is_fp16(self) -> bool:
        """Whether training is in float16, by autocast or by its weights."""
        return bool(self.accelerator.mixed_precision == "fp16" or base_model_of(self.model).dtype == torch.float16)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward and backward pass of a step as [`~transformers.Trainer`] does, without cuDNN's attention."""
        with masks_off_cudnn():
            return super().training_step(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:  # DeepSpeed has none before its first step
            deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
            check_gradient(float(norm), self.state.global_step, self.is_fp16, before_update=not deepspeed)
        return norm
