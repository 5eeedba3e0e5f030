"""Counts the operations that would make a CPU wait for its GPU, while all computes on a CPU."""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Their output, or its shape, depends on values, which have to be read
_READS = {
    "_local_scalar_dense",  # item, bool, int, float
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# Called by Python without an operation of their own on a CPU; on a GPU each is a copy that is waited for
_COPIES = {"tolist", "cpu", "numpy", "__array__"}
_MAKERS = {torch.tensor, torch.as_tensor}
_PACKAGES = ("dmpo_trl", "trl", "transformers", "accelerate", "peft")


class CountSyncs(TorchDispatchMode):
    """While active, counts by their place in the code, "file.py:function", the operations that synchronise.

    Counted are reads of values (`item`, `bool`, `tolist`, `cpu`), indices that are masks, in the backward pass too,
    `nonzero` and its like, `repeat_interleave` that has to add up its counts, and tensors made of Python numbers on a
    device. A place in the backward pass is that of the call of `backward`.
    """

    def __init__(self):
        super().__init__()
        self.places = Counter()
        self._functions = _CountCalls(self)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._functions.__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name().split("::")[1].split(".")[0]
        by_mask = name.startswith(("index", "_index_put", "_unsafe_index")) and _has_mask(args[1:2])
        unknown_size = name == "repeat_interleave" and kwargs.get("output_size", (*args, None)[1]) is None
        if name in _READS or by_mask or unknown_size:
            self.count(name)
        return function(*args, **kwargs)

    def count(self, operation):
        """Count an operation at the innermost place of a package that is known."""
        for frame in reversed(traceback.extract_stack()):
            package = next((name for name in _PACKAGES if f"/{name}/" in frame.filename), None)
            if package is not None:
                file = Path(frame.filename).name
                self.places[f"{package} {file}:{frame.name} {operation}"] += 1
                return
        self.places[f"elsewhere {operation}"] += 1


class _CountCalls(TorchFunctionMode):
    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _COPIES or (function in _MAKERS and kwargs.get("device") is not None):
            self.counter.count(name)
        return function(*args, **kwargs)


def _has_mask(indices):
    return any(
        one is not None and one.dtype in (torch.bool, torch.uint8)
        for group in indices
        if isinstance(group, list | tuple)
        for one in group
    )
