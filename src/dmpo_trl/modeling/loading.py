"""Models and tokenizers: loading, unwrapping, evaluation mode."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
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

# How torch and transformers begin to say that weights do not fit the model
_OTHER_SHAPES = ("Error(s) in loading state_dict", "ignore_mismatched_sizes")


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
    with _names_the_model(path, "model"), refuse_damaged_weights(path):
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


def cast_adapter(model: Any) -> Any:
    """Give an adapter that only ranks the type of the layers that it changes, and return the model.

    peft loads adapters in float32, as training wants them. In a model of half precision each of them then casts its
    layer's input to float32 and computes in it: slower, and no more exact. Only LoRA and IA3 are cast: other adapters
    have further tensors, which would stay as they are.

    Args:
        model: A model, with or without an adapter. Its adapter is rounded: do not save it.

    Example:
        >>> cast_adapter(load_model("my-adapter", dtype=torch.bfloat16))  # doctest: +SKIP
    """
    kinds = {config.peft_type for config in model.peft_config.values()} if isinstance(model, PeftModel) else set()
    if not kinds <= {PeftType.LORA, PeftType.IA3}:
        return model
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        weight = getattr(module.get_base_layer(), "weight", None)
        if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):  # and not in 4 or 8 bits
            for name in module.adapter_layer_names:
                if isinstance(layers := getattr(module, name, None), torch.nn.Module):
                    layers.to(weight.dtype)
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
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:  # of a damaged adapter config too
        raise ValueError(f"The model {path} cannot be loaded: {error}") from error


@contextmanager
def refuse_damaged_weights(path: str) -> Iterator[None]:
    """Turn the errors that bad files of weights raise inside the block into one that names the model.

    Args:
        path: Folder or hub id of the model or adapter that is loaded inside the block.

    Raises:
        ValueError: A file of weights is damaged, for instance cut off by a copy that was interrupted; or it is a
            pickle with more than tensors in it; or its tensors have other shapes than the config gives.

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
    except UnpicklingError as error:  # torch's own message advises to run what is in it
        raise ValueError(
            f"The weights of {path} are a pickle that holds more than tensors, or is damaged. Loading it could run "
            "any code, so it is not loaded: get or save the model's weights as safetensors."
        ) from error
    except (SafetensorError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            if any(sign in str(error) for sign in _OTHER_SHAPES):
                shapes = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), "")
                raise ValueError(
                    f"The weights of {path} have other shapes than its config gives or, those of an adapter, than its "
                    f"base model has{shapes and f' ({shapes})'}. Use the config or the base model that they belong to."
                ) from error
            if "PytorchStreamReader" not in str(error):
                raise
        raise ValueError(
            f"A file of weights of {path}, or of its base model, is damaged ({str(error) or 'it is empty'}). Download "
            "or save the model anew."
        ) from error


@contextmanager
def _names_the_model(path: str, part: str) -> Iterator[None]:
    """Turn whatever the libraries raise while they read a model's files into an error that names the model."""
    try:
        yield
    except (ImportError, MemoryError, Warning, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError | OSError) and path in str(error):
            raise
        problem = str(error) if len(str(error)) < 500 else f"{str(error)[:500]} ..."
        if isinstance(error, OSError):
            raise OSError(f"The {part} {path} cannot be loaded: {problem}") from error
        raise ValueError(
            f"The {part} {path} cannot be loaded: {problem} ({type(error).__name__}). Download or save it anew."
        ) from error


def load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model; where an adapter comes without one, its base model's.

    Args:
        path: Folder or hub id.
        **kwargs: For transformers' `from_pretrained`, such as `trust_remote_code`. `revision` and `subfolder` are
            those of the adapter's repository; the base model's revision stands in the adapter's config.
    """
    with _names_the_model(path, "tokenizer of"):
        try:
            return AutoTokenizer.from_pretrained(path, **kwargs)
        except (OSError, ValueError):
            if not is_adapter(path, **kwargs):
                raise
        base, options = _base_of_adapter(path, kwargs)
        return AutoTokenizer.from_pretrained(base, **options)


def _base_of_adapter(path: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the base model of an adapter and the options to load it with; the adapter's config has its revision."""
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
