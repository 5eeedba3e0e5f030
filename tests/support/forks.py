"""A process that has imported everything and forks a child for each line of its standard input."""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from datasets.utils.logging import disable_progress_bar as without_bars_of_datasets
from transformers.utils.logging import disable_progress_bar as without_bars_of_transformers


def serve(run: Callable[..., None], counters: int = 0) -> None:
    """Call `run` in a child for each line, a JSON object of keyword arguments and `log`, the file of its output.

    The answer to a line is a list of the child's exit code, negative for a signal, and, where `run` gets `counts`, so
    many of them at the child's end.
    """
    without_bars_of_datasets()
    without_bars_of_transformers()
    for line in sys.stdin:
        arguments = json.loads(line)
        log, counts = arguments.pop("log"), multiprocessing.RawArray("q", counters)
        if counters:
            arguments["counts"] = counts
        child = os.fork()
        if not child:
            _run(run, arguments, log)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, *counts]), flush=True)


def _run(run: Callable[..., None], arguments: dict[str, Any], log: str) -> None:
    """End this process with the outcome of `run`, without a word of the parent's."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        run(**arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
