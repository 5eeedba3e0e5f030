"""Models and tokenizers from a folder or a hub id, whether that holds a whole model or an adapter."""

from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
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
