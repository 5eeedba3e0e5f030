"""Saved recommenders: catalogue, template and kind of score, in two files beside a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from transformers.utils import cached_file

from ..data.prompts import PromptTemplate
from ..modeling.loading import hub_options

SETTINGS, ITEMS = "recommender.json", "items.parquet"


def save_beside(folder: str | os.PathLike[str], items: pl.DataFrame, template: PromptTemplate, score: str) -> None:
    """Write the two files.

    Args:
        folder: That of the model; it is created if needed.
        items: The catalogue.
        template: Makes the prompts.
        score: What the recommender ranks by.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    items.write_parquet(folder / ITEMS)
    settings = {"template": template.to_dict(), "score": score}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_beside(path: str, model_options: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Find the two files beside a model.

    Args:
        path: Folder or hub id of the model.
        model_options: For the model's `from_pretrained`: the files are those of the same revision.

    Returns:
        The settings, empty where there are none, and the file of the catalogue; None where one of the two is missing.
    """
    settings, items = (
        cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_options(model_options))
        for name in (SETTINGS, ITEMS)
    )
    saved = {} if settings is None else json.loads(Path(settings).read_text(encoding="utf-8"))
    return saved, None if settings is None or items is None else Path(items)


def find_parts(
    path: str,
    model_options: Mapping[str, Any],
    *,
    data: str | os.PathLike[str] | None,
    items: pl.DataFrame | None,
    template: PromptTemplate | None,
) -> tuple[pl.DataFrame, PromptTemplate, dict[str, Any]]:
    """Find what a recommender has beside its model: given, or of a prepared folder, or saved, in this order.

    Args:
        path: Folder or hub id of the model.
        model_options: See `find_beside`.
        data: A prepared folder.
        items: The catalogue.
        template: Makes the prompts.

    Returns:
        The catalogue, the template, and the settings that were saved, empty where there are none.

    Raises:
        ValueError: One of the two is nowhere.
    """
    saved, stored = find_beside(path, model_options)
    if data is not None:
        from ..data.preparation.folder import Prepared

        prepared = Prepared.load(Path(data))
        return prepared.items if items is None else items, template or prepared.template, saved
    if (items is None or template is None) and stored is None:
        raise ValueError(
            f"{path} holds no {SETTINGS} and {ITEMS}: name the prepared folder with `data`, or in Python "
            "give items and template. `Recommender.save_pretrained` stores them beside the model."
        )
    if items is None:
        items = pl.read_parquet(str(stored), glob=False)
    return items, template or PromptTemplate.from_dict(saved["template"]), saved
