"""The training runs of a JSON file, one after the other, in each process of `accelerate launch`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from support.training import train

from dmpo_trl.modeling import logprobs
from dmpo_trl.training.distributed import end_process_group


def as_with_gpus(*_: Any) -> tuple[str, DistributedType]:
    """accelerate turns FSDP on where it finds GPUs, and nowhere else. All that it does then runs on CPUs as well."""
    return "gloo", DistributedType.MULTI_GPU


def main(folder: Path) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._prepare_backend = as_with_gpus
    found = {}
    for name, options in json.loads((folder / "runs.json").read_text()).items():
        # As on GPUs, whose backward pass goes back to the head's weights
        logprobs.MAX_KEPT_SOFTMAX = 0 if options.pop("recompute_logits", False) else 2**25
        found[name] = train(folder, name, **options)
    (folder / f"found{os.environ['RANK']}.json").write_text(json.dumps(found))
    end_process_group()
    os._exit(0)  # the interpreter's own end, see two_processes_rank.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
