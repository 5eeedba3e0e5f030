"""A script that uses DDP, destroys the process group and ends, several times over; test_ending.py runs it.

With `--unheld` the group is destroyed while the model holds it, as TRL's scripts do, and the script never ends:
`timeout 60 python tests/scripts/process_group_end.py --unheld`.
"""

import gc
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dmpo_trl.training.distributed import end_process_group


def script(*, unheld: bool) -> None:
    """Like a training script, whose trainer is often part of a cycle and is freed after the function returned."""
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model.cycle = [model]
    # Not waited for, and large: gloo's thread frees these tensors after everybody else has let go of them
    dist.all_gather([torch.zeros(1_000_000)], torch.ones(1_000_000), async_op=True)
    if unheld:
        dist.destroy_process_group()


def main() -> None:
    unheld = "--unheld" in sys.argv
    sys.setswitchinterval(1000)  # seconds: a thread gets the GIL only where it is released
    for _ in range(10):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        script(unheld=unheld)
        if unheld:
            gc.collect()  # frees the model, the last that holds the group
        else:
            end_process_group()
    print("the end")


if __name__ == "__main__":
    main()
