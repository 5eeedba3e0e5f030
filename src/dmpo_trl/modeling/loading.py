"""Models and tokenizers: how they are loaded, unwrapped, and put into evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file


def is_adapter(path: str, *, revision: str | None = None) -> bool:
    """Whether a folder or hub id holds an adapter of peft instead of a whole model."""
    return find_adapter_config_file(path, revision=revision) is not None


def load_model(path: str, **kwargs: Any) -> Any:
    """Loads a causal language model, in evaluation mode; an adapter on the base model that it names.

    Args:
        path: Folder or hub id.
        **kwargs: For transformers' or peft's `from_pretrained`, such as `dtype`, `device_map` or `is_trainable`. Where
            there is no GPU `dtype` defaults to float32: CPUs without bf16 instructions are many times slower in it.

    Returns:
        A `PreTrainedModel`, or a `PeftModel` around one.
    """
    kwargs = {"dtype": "auto" if torch.cuda.is_available() else torch.float32} | kwargs
    loader = AutoPeftModelForCausalLM if is_adapter(path, revision=kwargs.get("revision")) else AutoModelForCausalLM
    return loader.from_pretrained(path, **kwargs)


def load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Loads the tokenizer beside a model; where an adapter comes without one, its base model's.

    Args:
        path: Folder or hub id.
        **kwargs: For transformers' `from_pretrained`, such as `revision`.
    """
    try:
        return AutoTokenizer.from_pretrained(path, **kwargs)
    except (OSError, ValueError):
        if not is_adapter(path, revision=kwargs.get("revision")):
            raise
        return AutoTokenizer.from_pretrained(PeftConfig.from_pretrained(path).base_model_name_or_path)


def base_model_of(model: Any) -> Any:
    """The transformers model inside of what peft and accelerate wrap around it."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


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
