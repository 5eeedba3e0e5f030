"""Models and tokenizers: loading, unwrapping, evaluation mode."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

# Of the options for `from_pretrained`, those that say which files are read and from where
_HUB_OPTIONS = (
    "revision",
    "subfolder",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "proxies",
)


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say which files are read and from where: the same for all that lies beside a model.

    Args:
        options: For a model's `from_pretrained`.

    Example:
        >>> hub_options({"revision": "v2", "dtype": "auto"})
        {'revision': 'v2'}
    """
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


def is_adapter(path: str, **kwargs: Any) -> bool:
    """Return whether a folder or hub id holds an adapter of peft instead of a whole model.

    Args:
        path: Folder or hub id.
        **kwargs: For `from_pretrained`; see `hub_options` for those that count.
    """
    return find_adapter_config_file(path, **hub_options(kwargs)) is not None


def load_model(path: str, **kwargs: Any) -> Any:
    """Load a causal language model, in evaluation mode; an adapter on the base model that it names.

    Args:
        path: Folder or hub id.
        **kwargs: For transformers' or peft's `from_pretrained`, such as `dtype`, `device_map` or `is_trainable`. Where
            there is no GPU `dtype` defaults to float32: CPUs without bf16 instructions are many times slower in it.

    Returns:
        A `PreTrainedModel`, or a `PeftModel` around one.

    Raises:
        ValueError: The files lack weights, which would be random; or keys of the adapter, which would do nothing; or
            they are damaged.
    """
    with refuse_damaged_weights(path):
        return _load_model(path, **kwargs)


def _load_model(path: str, **kwargs: Any) -> Any:
    kwargs = {"dtype": "auto" if torch.cuda.is_available() else torch.float32} | kwargs
    if is_adapter(path, **kwargs):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
            try:
                return AutoPeftModelForCausalLM.from_pretrained(path, **kwargs)
            except UserWarning as warning:
                raise ValueError(f"The adapter {path} lacks weights. {warning} Save or download it anew.") from warning
    with_report: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **kwargs)
    model, loaded = with_report
    if missing := sorted(loaded["missing_keys"]):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{path} lacks {len(missing)} weights of {type(model).__name__}, which would be random: {shown}. Download "
            "or save the model anew."
        )
    return model


def check_found(path: str, **kwargs: Any) -> None:
    """Check that a model, or an adapter and its base model, can be found, without reading weights.

    Args:
        path: Folder or hub id.
        **kwargs: For `from_pretrained`; see `hub_options` for those that count.

    Raises:
        ValueError: There is no such folder or repository, or it holds no model.
    """
    options = hub_options(kwargs)
    model = path
    try:
        if is_adapter(path, **options):
            model, options = _base_of_adapter(path, options)
        if cached_file(model, "config.json", **options) is None:
            raise ValueError(f"{model} has no config.json.")
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {path} cannot be loaded: {error}") from error


@contextmanager
def refuse_damaged_weights(path: str) -> Iterator[None]:
    """Turn the error that a damaged file of weights raises inside the block into one that names the model.

    Args:
        path: Folder or hub id of the model or adapter that is loaded inside the block.

    Raises:
        ValueError: A file of weights is damaged, for instance cut off by a copy that was interrupted.

    Example:
        >>> with refuse_damaged_weights("my-model"):
        ...     raise SafetensorError("incomplete metadata, file not fully covered")
        Traceback (most recent call last):
        ...
        ValueError: A file of weights of my-model, or of its base model, is damaged (incomplete metadata, file not
        fully covered). Download or save the model anew.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"A file of weights of {path}, or of its base model, is damaged ({error}). Download or save the model "
            "anew."
        ) from error


def load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model; where an adapter comes without one, its base model's.

    Args:
        path: Folder or hub id.
        **kwargs: For transformers' `from_pretrained`, such as `trust_remote_code`. `revision` and `subfolder` are
            those of the adapter's repository; the base model's revision stands in the adapter's config.
    """
    try:
        return AutoTokenizer.from_pretrained(path, **kwargs)
    except (OSError, ValueError):
        if not is_adapter(path, **kwargs):
            raise
    base, options = _base_of_adapter(path, kwargs)
    return AutoTokenizer.from_pretrained(base, **options)


def _base_of_adapter(path: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The base model of an adapter, and the options to load it with: its revision stands in the adapter's config."""
    adapter = PeftConfig.from_pretrained(path, **hub_options(options))
    own = {name: value for name, value in options.items() if name not in ("revision", "subfolder")}
    return adapter.base_model_name_or_path, own | {"revision": adapter.revision}


def load_model_and_tokenizer(path: str, **kwargs: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from the same revision of the same place.

    Args:
        path: Folder or hub id of a model or an adapter.
        **kwargs: See `load_model`. The tokenizer gets `hub_options` and `trust_remote_code` of them.
    """
    shared = hub_options(kwargs)
    if "trust_remote_code" in kwargs:
        shared["trust_remote_code"] = kwargs["trust_remote_code"]
    return load_model(path, **kwargs), load_tokenizer(path, **shared)


def base_model_of(model: Any) -> Any:
    """Return the transformers model inside of what peft and accelerate wrap around it.

    Args:
        model: A transformers model, or a wrapper around one.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def learns_prompt(model: Any) -> bool:
    """Return whether a prompt-learning adapter puts virtual tokens before the input.

    Args:
        model: A transformers model, or a wrapper around one.
    """
    model = extract_model_from_parallel(model)
    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode inside the block; every module then gets back the mode that it had.

    Args:
        model: A `torch.nn.Module`.

    Example:
        >>> model = torch.nn.Dropout()
        >>> with evaluation_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
