"""Guards around a step: no kernel that is known to be wrong, no gradient that is not a number, no idle GPU."""

from collections.abc import Callable
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
    _waiting: list[Callable[[], None]] | None = None  # while a step runs: what to call after its backward pass

    @property
    def is_fp16(self) -> bool:
        """Whether training is in float16, by autocast or by its weights."""
        return bool(self.accelerator.mixed_precision == "fp16" or base_model_of(self.model).dtype == torch.float16)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward and backward pass of a step as [`~transformers.Trainer`] does, without cuDNN's attention."""
        self._waiting = []
        try:
            with masks_off_cudnn():
                loss = super().training_step(*args, **kwargs)
            for function in self._waiting:
                function()
        finally:
            self._waiting = None
        return loss

    @property
    def _updates_in_backward(self) -> bool:
        """Whether the backward pass changes the weights too."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def after_backward(self, function: Callable[[], None]) -> None:
        """Call a function that reads values of the forward pass once the backward pass is launched.

        A GPU is given work ahead of time, and whoever reads a value waits for all of it: read before the backward
        pass, values would leave the GPU idle until that is launched.

        Args:
            function: Called at once outside of a training step, and where the backward pass changes the weights.
        """
        if self._waiting is None or self._updates_in_backward:
            function()
        else:
            self._waiting.append(function)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:  # DeepSpeed has none before its first step
            before_update = not self._updates_in_backward
            check_gradient(float(norm), self.state.global_step, self.is_fp16, before_update=before_update)
        return norm
