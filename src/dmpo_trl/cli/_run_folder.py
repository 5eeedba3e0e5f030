"""Output folders of training: what a run would replace in them, and which of it a run wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..data.preparation.folder import PREPARED, read_manifest
from ..training.checkpoints import FILE_LIST
from ..training.model_card import is_own_card
from ..training.run_record import RECORD as RUN_RECORD
from ..writing import is_unfinished, new_file, read_json, sha256

RECORD = "dmpo_training.json"
_FORMAT = "dmpo-trl training, version 1"
_CARD = "README.md"
_SHOWN = 5
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# What a run writes beside its checkpoints: model or adapter, tokenizer or processor, card, catalogue
_WRITTEN = re.compile(
    r"README\.md|recommender\.json|items\.parquet|training_args\.bin"
    r"|(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|(adapter_|generation_)?config\.json|added_tokens\.json|special_tokens_map\.json"
    r"|tokenizer(_config)?\.json|chat_template\.(jinja|json)|(pre|video_pre)?processor_config\.json"
    r"|vocab\.(json|txt)|merges\.txt|[\w.-]+\.(model|tiktoken)"
)


def check_run_folder(folder: str | os.PathLike[str], *, resumes: bool) -> None:
    """Check before a training that nothing which training did not write would be replaced.

    Args:
        folder: The folder of the run.
        resumes: Whether the run goes on with what is there. Only a run that does not may not find checkpoints of
            another program, which it would overwrite or, with `save_total_limit`, delete.

    Raises:
        FileExistsError: It is a file or a folder of prepared data, or holds what a run would replace and none wrote,
            or what was changed since.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "items.parquet").write_text("mine")
        ...     check_run_folder(folder, resumes=False)
        Traceback (most recent call last):
        FileExistsError: --output_dir ... holds what training would replace and did not write, or what was changed ...
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output_dir {folder} is a file; name a folder.")
    if read_manifest(folder) is not None or is_unfinished(folder, PREPARED):
        raise FileExistsError(
            f"--output_dir {folder} holds prepared data, whose README.md the model's card would replace. Choose "
            "another folder."
        )
    if foreign := sorted(_foreign(folder, resumes)):
        names = ", ".join(foreign[:_SHOWN]) + (f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else "")
        raise FileExistsError(
            f"--output_dir {folder} holds what training would replace and did not write, or what was changed since: "
            f"{names}. Move it away, or choose another folder."
        )


def begin_run(folder: str | os.PathLike[str]) -> None:
    """Note in a folder that was checked that a run writes to it: what it leaves when it is killed is its own.

    Args:
        folder: The folder of the run; it is made if needed.

    Example:
        >>> begin_run("outputs/dmpo")  # doctest: +SKIP
    """
    _write(Path(folder), None)


def end_run(folder: str | os.PathLike[str]) -> None:
    """Note what a run wrote, by which the next one knows what is its own.

    Args:
        folder: The folder of the run.

    Example:
        >>> end_run("outputs/dmpo")  # doctest: +SKIP
    """
    files = [path for path in sorted(Path(folder).iterdir()) if _WRITTEN.fullmatch(path.name) and path.is_file()]
    _write(Path(folder), {path.name: sha256(path) for path in files})


def _write(folder: Path, files: dict[str, str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / RECORD, overwrite=True) as file:
        file.write_text(f"{json.dumps({'format': _FORMAT, 'files': files}, indent=2)}\n", encoding="utf-8")


def _foreign(folder: Path, resumes: bool) -> Iterator[str]:
    record = read_json(folder / RECORD, _FORMAT)
    if record is None and (folder / RECORD).exists():
        yield RECORD
    in_progress = record is not None and record.get("files") is None
    files = record.get("files") if record is not None else None
    known = files if isinstance(files, dict) else {}
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_dir() and _CHECKPOINT.fullmatch(path.name):
            ours = in_progress or any((path / name).exists() for name in (FILE_LIST, RUN_RECORD))
            if not ours and not resumes:
                yield f"{path.name}/"
        elif _WRITTEN.fullmatch(path.name):
            same = path.is_file() and (in_progress or sha256(path) == known.get(path.name))
            if path.name == _CARD:  # training knows its own by its words, where no record tells of it
                same = path.is_file() and is_own_card(path) and (same or _CARD not in known)
            if not same:
                yield path.name
