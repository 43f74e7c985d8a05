"""Ctrl-C and SIGTERM: a program ends in words, with the exit status that shells and schedulers expect."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = tuple(128 + number for number in SIGNALS)  # exit statuses: 130 for Ctrl-C, 143 for SIGTERM
SECONDS_TO_END = 10


class Interruption(KeyboardInterrupt):
    """A signal asked this program to end. It is a KeyboardInterrupt, which libraries let pass.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status, one of ``INTERRUPTED``."""
        return 128 + self.number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, the first signal raises ``Interruption`` and another ends the process at once.

    Signals reach a program's main thread; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _end_at_once)
    # The loader's processes may be told to end too, and torch would raise an error in whatever is done now.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise Interruption(number)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def end_started_processes(seconds: float = SECONDS_TO_END) -> None:
    """Asks the processes that this one started to end, and kills those that still run after some seconds."""
    started = multiprocessing.active_children()
    for process in started:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
