"""Checkpoints: which one a run resumes from, and what becomes of those that an interruption left half-written.

transformers writes the files of a checkpoint one by one under its final name, `trainer_state.json` last, and resumes
from the highest number whatever it holds. Here `trainer_state.json` is what makes a checkpoint whole: it is taken
away before a folder is written again, and before it is written all processes are done and the sizes of all files are
listed. What is not whole is renamed with a warning, never deleted; so is a damaged cache of reference log-probs.
"""

import json
import logging
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

FILE_LIST = "checkpoint_files.json"
STATE = "trainer_state.json"


def checkpoint_to_resume(
    output_dir: str, resume_from_checkpoint: str | bool | None, sync_ref_model: bool = False
) -> str | None:
    """Choose the checkpoint that training goes on from.

    Args:
        output_dir: Folder with the checkpoints of the run.
        resume_from_checkpoint: As in [`~transformers.Trainer.train`]: a checkpoint's folder, or `True` for the last
            one of `output_dir`, which here means the last whole one.
        sync_ref_model: Whether the reference follows the policy: no checkpoint holds it.

    Returns:
        The folder, or `None` to start at the beginning.

    Raises:
        ValueError: The checkpoint is not whole, or there is none; says what is missing.
    """
    if not resume_from_checkpoint:
        if (last := last_whole_checkpoint(output_dir)) is not None:
            logger.warning(
                "%s is there from an earlier run. This run starts at the beginning and overwrites checkpoints of the "
                "same number. To go on instead: `train(resume_from_checkpoint=True)`, `dmpo-trl train --resume`.",
                last,
            )
        return None
    if resume_from_checkpoint is True:
        checkpoint = last_whole_checkpoint(output_dir)
        if checkpoint is None:
            raise ValueError(_nothing_to_resume(output_dir))
    else:
        checkpoint = os.fspath(resume_from_checkpoint)
        if not os.path.isdir(checkpoint):
            raise ValueError(
                f"The checkpoint {checkpoint} is not a folder. `True` means the last one of {output_dir}."
            )
        if found := problems(checkpoint):
            raise ValueError(
                f"The checkpoint {checkpoint} is not whole: {'; '.join(found)}. Name another one, or pass `True` for "
                f"the last whole one of {output_dir}."
            )
    folder = Path(checkpoint)
    if not (folder / FILE_LIST).is_file():
        logger.warning(
            "%s has no %s: plain TRL wrote it, or `save_only_model`. Its files are whole as far as they can tell. "
            "Nothing tells whether it belongs to this dataset, this reference and these options.",
            folder,
            FILE_LIST,
        )
    if not has_optimizer(folder):
        logger.warning(
            "%s has no optimizer state: training goes on with a new optimizer, and will not end with the weights of "
            "an uninterrupted run.",
            folder,
        )
    if sync_ref_model:
        logger.warning(
            "`sync_ref_model=True`: checkpoints do not hold the reference, which starts again as it did at first. "
            "The resumed run will not end with the weights of an uninterrupted one."
        )
    return checkpoint


def last_whole_checkpoint(output_dir: str) -> str | None:
    """Return the whole checkpoint of the highest step in a folder, or `None`."""
    whole = (folder for folder in reversed(_checkpoints(output_dir)) if not problems(folder))
    return next(map(str, whole), None)


def set_incomplete_aside(output_dir: str) -> None:
    """Rename every checkpoint that is not whole to `incomplete-checkpoint-N`, and logs its name and what it lacks.

    Out of the way of the run, which writes a checkpoint of the same number, and of the rotation by `save_total_limit`,
    which would delete it. Nothing is deleted here.
    """
    for folder in _checkpoints(output_dir):
        if found := problems(folder):
            aside = _set_aside(folder, f"incomplete-{folder.name}")
            logger.warning(
                "The checkpoint %s is not whole (%s). It is not used and now called %s: look at it or delete it.",
                folder,
                "; ".join(found),
                aside.name,
            )


def set_damaged_cache_aside(cache_file: str, rows: int) -> None:
    """Rename a cache of reference log-probs that cannot be read or has other than `rows` rows, and logs its new name.

    datasets renames a cache into place once it is written, so a killed process leaves none that is cut short; a full
    disk or a power cut may.
    """
    path = Path(cache_file)
    if not path.exists():
        return
    try:
        damage = "" if (has := len(Dataset.from_file(cache_file))) == rows else f"{has} rows instead of {rows}"
    except (ValueError, OSError) as error:  # pyarrow's are of either kind
        damage = str(error)
    if damage:
        aside = _set_aside(path, f"damaged-{path.name}")
        logger.warning(
            "The cache of reference log-probs %s is damaged (%s). It is computed again; the old file is now called "
            "%s: look at it or delete it.",
            path,
            damage,
            aside.name,
        )


def mark_incomplete(checkpoint: str) -> None:
    """Make an older checkpoint of this name incomplete, before a new one is written over it file by file."""
    for name in (STATE, FILE_LIST):
        Path(checkpoint, name).unlink(missing_ok=True)


def write_file_list(checkpoint: str) -> None:
    """Write the sizes of a checkpoint's files into it, once they are on the disk; `trainer_state.json` comes next."""
    folder = Path(checkpoint)
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())  # after a power cut a file may have its size without its contents
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    (folder / FILE_LIST).write_text(json.dumps(sizes, indent=2))


def problems(checkpoint: str | Path) -> list[str]:
    """Return what keeps a checkpoint from being whole, in words that name the files; empty for a whole one.

    Where we wrote it, its files are compared with the list of their sizes. A checkpoint of plain TRL or transformers
    has no list: what the formats tell must do (safetensors and torch files know where they end).
    """
    folder = Path(checkpoint)
    found = []
    if not (folder / STATE).is_file():
        found.append(f"{STATE}, which is written last, is missing")
    if (folder / FILE_LIST).is_file():
        if (sizes := _parse(folder / FILE_LIST)) is None:
            return [*found, f"{FILE_LIST} is cut short"]
        if (folder / STATE).is_file() and _parse(folder / STATE) is None:
            found.append(f"{STATE} is cut short")
        for name, size in sizes.items():
            if not (folder / name).is_file():
                found.append(f"{name} is missing")
            elif (has := (folder / name).stat().st_size) != size:
                found.append(f"{name} has {has} bytes instead of {size}")
        return found
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _ends_where_it_should(path):
            found.append(f"{name} is cut short")
        elif name.endswith(".index.json"):
            shards = sorted(set((_parse(path) or {}).get("weight_map", {}).values()))
            found += [f"{shard} is missing" for shard in shards if not (path.parent / shard).is_file()]
    if not _holds(folder, _WEIGHTS):
        found.append("the model's weights are missing")
    # `save_only_model` writes neither; transformers would go on with a new optimizer without a word
    if _holds(folder, ["rng_state*"]) and not has_optimizer(folder):
        found.append("the optimizer's state is missing")
    return found


# In the order of transformers, FSDP, DeepSpeed
_WEIGHTS = ["**/*model*.safetensors", "**/*model*.bin", "*model_fsdp*/*", "global_step*/*"]
_OPTIMIZER = ["optimizer.pt", "optimizer.bin", "optimizer_*/*", "global_step*/*"]


def has_optimizer(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds the optimizer's state."""
    return _holds(checkpoint, _OPTIMIZER)


def _holds(folder: Path, patterns: Iterable[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _parse(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _ends_where_it_should(path: Path) -> bool:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "np"):
                return True
        except SafetensorError:
            return False
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)  # what `torch.save` writes; the directory of a zip file stands at its end
    return path.suffix != ".json" or _parse(path) is not None


def _set_aside(path: Path, name: str) -> Path:
    """Rename a file or folder to a name beside the old one, with a number where that is taken."""
    aside, number = path.with_name(name), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{name}-{number}")
    return path.rename(aside)


def _checkpoints(output_dir: str) -> list[Path]:
    """Return the folders `checkpoint-N`, by number."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _nothing_to_resume(output_dir: str) -> str:
    message = f"There is no whole checkpoint in {output_dir} to resume from."
    for folder in _checkpoints(output_dir):
        message += f" {folder.name}: {'; '.join(problems(folder))}."
    return f"{message} Leave `resume_from_checkpoint` out to start at the beginning."
