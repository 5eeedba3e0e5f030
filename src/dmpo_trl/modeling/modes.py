"""Evaluation and training mode of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode inside the block; every module then gets back the mode that it had.

    Args:
        model: A `torch.nn.Module`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
