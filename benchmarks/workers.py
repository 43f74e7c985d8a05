"""Many small jobs on several processes, in their order and that of their needs, until a deadline."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

_MARGIN = 1.15  # runs of one kind do not all take the same time


@dataclass(frozen=True)
class Job:
    """A call in another process.

    Attributes:
        name: for messages, and for ``after``. function, arguments: picklable. cost: its time in any unit, the same for
            all. after: names of jobs whose results it needs.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple
    cost: float
    after: tuple[str, ...] = ()


def complete(
    jobs: Iterable[Job],
    workers: int,
    start: Callable[..., None],
    start_arguments: tuple,
    report: Callable[[Job, Any], None],
    deadline: float | None = None,
) -> dict[str, str]:
    """Calls all jobs, the first ones first.

    A job is not started where it would end after the deadline, by the seconds a cost of 1 took so far; smaller ones
    behind it may still be. A job that fails, and those that need it, are left out and the others go on.

    Args:
        workers: processes at a time. start, start_arguments: called first in each. report: told of each result.
        deadline: of ``time.monotonic``.

    Returns:
        Name -> why, of jobs that were not done.
    """
    waiting = list(jobs)
    undone: dict[str, str] = {}
    running: dict[Future, tuple[Job, float]] = {}
    pace: list[float] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start, start_arguments) as pool, _ended_on_failure():
        while waiting or running:
            names = {job.name for job in waiting} | {job.name for job, _ in running.values()}
            for job in list(waiting) if len(running) < workers else ():
                reason = _why_not(job, undone, pace, deadline)
                if not reason and (names.intersection(job.after) or len(running) == workers):
                    continue
                waiting.remove(job)
                try:
                    if not reason:
                        running[pool.submit(job.function, *job.arguments)] = (job, time.monotonic())
                except BrokenExecutor as broken:  # a worker was killed, by a lack of memory perhaps
                    reason = str(broken)
                if reason:
                    undone[job.name] = reason
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                job, began = running.pop(future)
                error = future.exception()
                if error is not None:
                    undone[job.name] = f"{type(error).__name__}: {error}"
                    continue
                pace.append((time.monotonic() - began) / job.cost)
                report(job, future.result())
    return undone


@contextlib.contextmanager
def _ended_on_failure() -> Iterator[None]:
    """Kills the workers where the program is interrupted or fails: the pool would wait for what they do."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise


def _why_not(job: Job, undone: dict[str, str], pace: list[float], deadline: float | None) -> str:
    absent = [name for name in job.after if name in undone]
    if absent:
        return f"{absent[0]} is missing"
    if deadline is None:
        return ""
    # The latest ones: the first have started Python and compiled kernels too.
    expected = _MARGIN * job.cost * (sorted(pace[-20:])[len(pace[-20:]) // 2] if pace else 0)
    return "no time" if time.monotonic() + expected > deadline else ""
