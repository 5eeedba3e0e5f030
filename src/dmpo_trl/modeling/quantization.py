"""4-bit quantization: layers of bitsandbytes that one evaluation on a CPU would spoil for training.

With AVX512-BF16 a `Linear4bit` in evaluation mode packs its weights anew for an inference kernel that computes in
bfloat16 and has no derivative, and never goes back: after the first evaluation no gradient passes the layer any more
(bitsandbytes 0.50). The layers have a flag for it, which is off on every other machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FLAG = "support_avx512bf16_for_cpu"


def keep_trainable(model: Any) -> None:
    """Let no evaluation change how the 4-bit layers of a model compute.

    Args:
        model: A `torch.nn.Module`; without such layers nothing happens.

    Raises:
        ValueError: An earlier evaluation has changed them.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, _FLAG):
            continue
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"The 4-bit layer {name!r} was evaluated before, on a CPU with AVX512-BF16: bitsandbytes has packed "
                "its weights for inference, and no gradient passes it any more. Load the model anew and train it "
                "first."
            )
        setattr(layer, _FLAG, False)


@contextmanager
def unpacked_layers(model: Any) -> Iterator[None]:
    """Let no forward inside the block pack 4-bit layers; afterwards an evaluation may, as before.

    Args:
        model: A `torch.nn.Module`.
    """
    layers = [(layer, getattr(layer, _FLAG)) for layer in model.modules() if hasattr(layer, _FLAG)]
    for layer, _ in layers:
        setattr(layer, _FLAG, False)
    try:
        yield
    finally:
        for layer, flag in layers:
            setattr(layer, _FLAG, flag)
