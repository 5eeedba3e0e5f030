"""A queue before the model: one call at a time, in which the requests of a kind that wait are answered together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class _Job:
    call: Callable[[Sequence[Any]], Sequence[Any]]
    argument: Any
    kind: Hashable
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Runs calls in one thread, one after the other.

    Nothing waits for company: while a call runs, those that come meanwhile wait, and the next call takes all of the
    kind of the oldest with it.

    Args:
        batch: Requests that one call answers, at most.
        waiting: Requests that may wait.

    Example:
        >>> async def add(numbers):
        ...     batcher = Batcher(batch=8, waiting=8)
        ...     work = asyncio.create_task(batcher.run())
        ...     answers = [batcher.ask(lambda own: [one + 1 for one in own], number, "add") for number in numbers]
        ...     found = await asyncio.gather(*answers)
        ...     work.cancel()
        ...     return found
        >>> asyncio.run(add([1, 2, 3]))
        [2, 3, 4]
    """

    def __init__(self, batch: int, waiting: int) -> None:
        self._batch, self._most = batch, waiting
        self._jobs: deque[_Job] = deque()
        self._came = asyncio.Event()

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._jobs)

    async def ask(self, call: Callable[[Sequence[Any]], Sequence[Any]], argument: Any, kind: Hashable) -> Any:
        """Return what a call gives for an argument.

        Args:
            call: Takes the arguments of several requests and returns as many results.
            argument: That of this request.
            kind: Requests of one kind have the same call, and may be answered together.

        Raises:
            QueueFullError: Too many wait already.
            Exception: What the call raised. Where it had several arguments, each is tried by itself after a
                `ValueError`, so that nobody's mistake is another's.
        """
        if len(self._jobs) >= self._most:
            raise QueueFullError
        job = _Job(call, argument, kind)
        self._jobs.append(job)
        self._came.set()
        return await job.result

    async def run(self) -> None:
        """Answer requests until cancelled; a call that has begun is finished first."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="model") as thread:
            while True:
                while not self._jobs:
                    self._came.clear()
                    await self._came.wait()
                jobs = self._next()
                if not jobs:
                    continue
                outcomes = await loop.run_in_executor(thread, _outcomes, jobs[0].call, [job.argument for job in jobs])
                for job, outcome in zip(jobs, outcomes, strict=True):
                    if job.result.done():  # who asked has gone
                        continue
                    if isinstance(outcome, Exception):
                        job.result.set_exception(outcome)
                    else:
                        job.result.set_result(outcome)

    def _next(self) -> list[_Job]:
        """Take the oldest request, and those of its kind, out of the queue; who has gone is left out."""
        waiting = [job for job in self._jobs if not job.result.done()]
        taken = [job for job in waiting if job.kind == waiting[0].kind][: self._batch]
        self._jobs = deque(job for job in waiting if job not in taken)
        return taken


def _outcomes(call: Callable[[Sequence[Any]], Sequence[Any]], arguments: Sequence[Any]) -> Sequence[Any]:
    """Return the result for each argument, or the exception in its place."""
    try:
        return call(arguments)
    except ValueError as error:
        if len(arguments) == 1:
            return [error]
        return [_outcomes(call, [argument])[0] for argument in arguments]
    except Exception as error:
        return [error] * len(arguments)
