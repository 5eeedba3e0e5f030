"""Export: an adapter merged into its base model, with all that serving needs, in one folder of plain files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..modeling.loading import check_found, evaluation_mode, hub_options, is_adapter
from ..writing import Kind, check_folder, new_folder
from .recommender import Recommender
from .title_generation import TitleGeneration

logger = logging.getLogger(__name__)

EXPORTED = Kind("dmpo-trl export, version 1", command="export", holds="an exported model")
TITLES = "titles.npz"
_HISTORY, _CANDIDATES = 3, 20  # what is scored before and after the merge


def check_export(path: str, folder: str | os.PathLike[str], *, overwrite: bool, **model_options: Any) -> None:
    """Check before weights are read that a model can be exported to a folder.

    Args:
        path: Folder or hub id of a model or an adapter.
        folder: Where it goes.
        overwrite: Whether an earlier export there may be replaced.
        **model_options: For `from_pretrained`.

    Raises:
        ValueError: There is no such model, its weights are quantised, or its adapter learns a prompt and no weights or
            changes an embedding that is the output layer too.
        OSError: The folder may not be replaced or cannot be written.

    Example:
        >>> check_export("outputs/dmpo", "exported", overwrite=False)  # doctest: +SKIP
    """
    check_folder(folder, EXPORTED, overwrite=overwrite)
    check_found(path, **model_options)
    base, options, adapter = path, hub_options(model_options), None
    if is_adapter(path, **options):
        adapter = PeftConfig.from_pretrained(path, **options)
        if adapter.is_prompt_learning:
            raise ValueError(
                f"The adapter {path} learns a prompt ({adapter.peft_type}), which cannot be merged into weights. "
                "Train LoRA for an export, or serve the adapter as it is."
            )
        base, options = adapter.base_model_name_or_path, options | {"revision": adapter.revision}
    config, _ = PretrainedConfig.get_config_dict(base, **options)
    if quantization := config.get("quantization_config"):
        raise ValueError(
            f"The weights of {base} are quantised ({quantization.get('quant_method', 'unknown method')}), and an "
            "adapter merged into them would be rounded to as few bits. Write the name of the full-precision model as "
            "base_model_name_or_path into adapter_config.json of the adapter, or serve it as it is."
        )
    code = model_options.get("trust_remote_code", False)
    if adapter is not None and (changed := _changed_of_tied(adapter, base, trust_remote_code=code, **options)):
        raise ValueError(
            f"The adapter {path} changes {' and '.join(changed)}, and {base} has one weight for its embedding and its "
            "output layer (tie_word_embeddings), so that a merge would change both. Train an adapter without these "
            "layers for an export, or serve this one as it is."
        )


def export(recommender: Recommender, folder: str | os.PathLike[str], *, overwrite: bool = False) -> float:
    """Merge a recommender's adapter, and write the model with all that belongs to it to a folder.

    The folder appears when it is complete. It holds the weights as safetensors, the configs, the tokenizer with its
    chat template, `items.parquet` (the catalogue), `recommender.json` (template and score), `titles.npz` (see
    [`TitleArrays`]; not where the template lists candidates) and `manifest.json` with checksums. Transformers'
    `AutoModelForCausalLM` loads it, and `Recommender.from_pretrained`.

    Args:
        recommender: The recommender. An adapter is merged in memory: its model is of no use afterwards.
        folder: Where it goes.
        overwrite: Whether an earlier export there is replaced.

    Returns:
        How far the merge moved the score of a title, at most, in nats, over some titles; 0 where nothing was merged.

    Raises:
        ValueError: The merged weights are not finite.
        OSError: The folder may not be replaced, cannot be written, or the disk is full.

    Example:
        >>> recommender = Recommender.from_pretrained("outputs/dmpo", data="data")  # doctest: +SKIP
        >>> export(recommender, "exported")  # doctest: +SKIP
        2.9e-06
    """
    moved, merged = 0.0, recommender
    if isinstance(recommender.model, PeftModel):
        parts = recommender.tokenizer, recommender.catalogue.frame, recommender.template
        before = _scores(Recommender(recommender.model, *parts, score=recommender.score))  # without a prior
        with evaluation_mode(recommender.model):
            model = recommender.model.merge_and_unload(safe_merge=True)
        merged = Recommender(model.eval(), *parts, score=recommender.score)
        moved = float(np.abs(_scores(merged) - before).max())
    with new_folder(folder, EXPORTED, overwrite=overwrite) as new:
        merged.save_pretrained(new)
        if merged.template.candidates is None:
            _write_titles(merged, new)
        else:
            logger.info("The template lists candidates in the prompt, so %s is left out.", TITLES)
    return moved


def _changed_of_tied(adapter: PeftConfig, base: str, *, trust_remote_code: bool, **options: Any) -> list[str]:
    """Return the embedding and the output layer as far as the adapter changes them, where they share a weight."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, **options)
    if not getattr(config, "tie_word_embeddings", False):
        return []
    with torch.device("meta"):  # its layers, to see what they are called
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, layer in model.named_modules() if layer in tied]
    return [name for name in names if check_target_module_exists(adapter, name)]


def _write_titles(recommender: Recommender, folder: Path) -> None:
    TitleGeneration(recommender).titles(recommender.catalogue.items[:1]).save(folder / TITLES)


def _scores(recommender: Recommender) -> np.ndarray:
    """Return the scores of some titles after some history, in the order of the catalogue."""
    items = recommender.catalogue.items
    found = recommender.rank(items[:_HISTORY], items[-_CANDIDATES:])
    scores = {one.item: one.score for one in found}
    return np.array([scores[item] for item in items[-_CANDIDATES:]])
