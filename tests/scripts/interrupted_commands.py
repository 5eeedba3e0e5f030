"""A process that has imported everything and forks a child for each command; test_interrupted_commands.py kills them.

A line of standard input describes a command, a line of standard output how it ended: the child's exit code, negative
for a signal, and how many steps and events it had. A step is a change to the disk that Python makes below a folder,
an event one of Python's profiler, which sees every call of a function. A child kills itself before the one that its
description names.
"""

import os
import signal
import sys

import transformers.models.llama.modeling_llama  # noqa: F401
from support.forks import serve

from dmpo_trl.cli import evaluate, export, main, prepare, recommend  # noqa: F401
from dmpo_trl.work import parts

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "ctypes.call_function")


def run(arguments, cwd, root, kill, counts):
    """Run a command; `kill` is the number of its last step or event, by `"step"` or `"event"`."""

    def count(kind):
        counts[kind] += 1
        if counts[kind] == kill.get(("step", "event")[kind]):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_audit(event, details):
        if event in STEPS and (event == "ctypes.call_function" or root in str(details)):
            count(0)

    os.chdir(cwd)
    sys.addaudithook(on_audit)
    if "step" not in kill:
        sys.setprofile(lambda *_: count(1))
    main(arguments)


if __name__ == "__main__":
    parts.USERS_PER_PART = 8  # several for the few users here
    serve(run, counters=2)
