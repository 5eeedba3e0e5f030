"""`--reference no_history` of a training run: what the model says of titles without a history is the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from ..config import DMPOConfig
from ..data import Prepared
from ..data.preparation.folder import is_prepared
from ..evaluation import load_for_ranking, reference_without_history
from ..evaluation.no_history import check_lists_nothing
from ..losses import registered


def with_reference_without_history(
    datasets: Sequence[Any], folder: str | None, config: DMPOConfig, path: str, loading: Mapping[str, Any]
) -> list[Dataset | None]:
    """Return training data with reference log-probs that the model gives titles before it knows anything of a user.

    Args:
        datasets: Those to train and to evaluate on; None where there is none.
        folder: Folder or name of the data.
        config: Of the trainer. It is told that reference log-probs are there.
        path: Folder or hub id of the model that training begins with.
        loading: For its `from_pretrained`.

    Raises:
        ValueError: The data are not those of `dmpo-trl prepare`, whose template says what a prompt without a history
            is, are streamed, or have such log-probs; the template lists the candidates; or no loss has a reference.
    """
    if folder is None or not is_prepared(folder):
        raise ValueError(
            f"--reference no_history needs the template of a folder of `dmpo-trl prepare`; {folder} is none."
        )
    template = Prepared.load(folder).template
    check_lists_nothing(template)
    if not any(loss.reference for loss in registered(config.loss_type)):
        raise ValueError(f"--reference no_history: loss_type={config.loss_type} has no reference. Leave it out.")
    if not all(dataset is None or isinstance(dataset, Dataset) for dataset in datasets):
        raise ValueError("--reference no_history scores all titles before the training: do not stream the data.")
    model, tokenizer = load_for_ranking(path, **loading)
    config.precompute_ref_log_probs = True  # so that no reference is loaded
    scoring: Any = {"special_tokens_in_text": False, "progress": "titles without a history"}
    return [
        None if dataset is None else reference_without_history(dataset, model, tokenizer, template, **scoring)
        for dataset in datasets
    ]
