"""A script that uses DDP, destroys the process group and ends, several times over; test_ending.py runs it.

With `--unheld` nobody holds the group, and it never ends:
`timeout 60 python tests/scripts/process_group_end.py --unheld`.
"""

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dmpo_trl.training.distributed import process_group_outlives


def script() -> None:
    """Like TRL's, which destroys the group before its trainer, often part of a cycle, is freed."""
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model.cycle = [model]
    # Not waited for, and large: gloo's thread frees these tensors after everybody else has let go of them
    dist.all_gather([torch.zeros(1_000_000)], torch.ones(1_000_000), async_op=True)
    dist.destroy_process_group()


def main() -> None:
    group_held = nullcontext if "--unheld" in sys.argv else process_group_outlives
    sys.setswitchinterval(1000)  # seconds: a thread gets the GIL only where it is released
    for _ in range(10):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        with group_held():
            script()
    print("the end")


if __name__ == "__main__":
    main()
