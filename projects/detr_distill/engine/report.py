"""How a user's error or an interruption leaves the program: one block on stderr and in the log, and an exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import OutputError
from .faults.interruption import Interruption, interruptible
from .faults.words import in_words
from .process import LogFile

TRACEBACK_VARIABLE = "DETR_DISTILL_TRACEBACK"


class UserErrorExit(SystemExit):
    """Ends a process whose error, or interruption, has been reported."""


def wants_traceback() -> bool:
    """Whether the user asked for stack traces by the environment."""
    return os.environ.get(TRACEBACK_VARIABLE) == "1"


def format_block(error: BaseException) -> str:
    """The error between two lines, with how to see its stack trace."""
    line = "-" * 80
    return f"{line}\n{type(error).__name__}: {error}\n{line}\n(the stack trace of this error: {TRACEBACK_VARIABLE}=1)"


@contextlib.contextmanager
def report_user_errors(message_file: str | None = None, how_to_go_on: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns an error in words, and a fault of the machine that has words, into a message and ``UserErrorExit(1)``.

    Ctrl-C and SIGTERM become one line and exit status 130 and 143. Other errors pass.

    Args:
        message_file: write the message there instead of to stderr: of several processes that fail, the first alone
            is heard, by the process that started them.
        how_to_go_on: said where the program was stopped from outside, by a signal or a fault of the machine.
    """
    try:
        with interruptible(), _quiet_threads():
            yield
    except Interruption as interruption:
        if wants_traceback():
            raise
        _report(f"Ended by {interruption}. {how_to_go_on()}".rstrip(), message_file)
        raise UserErrorExit(interruption.status) from interruption
    except Exception as error:
        words = in_words(error)
        if words is None or wants_traceback():
            raise
        from_outside = words is not error or isinstance(words, OutputError)
        advice = how_to_go_on() if from_outside else ""
        _report(format_block(type(words)(f"{words} {advice}".rstrip())), message_file)
        raise UserErrorExit(1) from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """A thread's fault that has words reaches the main thread, and is said there: TensorBoard's writer hands it on."""
    before = threading.excepthook

    def print_unknown(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or in_words(arguments.exc_value) is None:
            before(arguments)

    threading.excepthook = print_unknown
    try:
        yield
    finally:
        threading.excepthook = before


def report_end(words: str, message_file: str | None = None) -> None:
    """Says why this process ends, where nothing can be raised; arguments as in :func:`report_user_errors`."""
    _report(f"Ended: {words}".rstrip(), message_file)


def _report(block: str, message_file: str | None) -> None:
    _write_to_log_files(block)
    if message_file is None:
        print(block, file=sys.stderr, flush=True)
    else:
        with contextlib.suppress(FileExistsError), open(message_file, "x") as file:
            file.write(block)


def print_message_of(message_file: str) -> bool:
    """Prints what a started process left behind; False when it left nothing."""
    path = Path(message_file)
    if not path.is_file():
        return False
    print(path.read_text(), file=sys.stderr, flush=True)
    return True


def _write_to_log_files(block: str) -> None:
    """The log's files alone: its console stream would print the block a second time."""
    record = logging.LogRecord("detr_distill", logging.ERROR, __file__, 0, block, None, None)
    for handler in logging.getLogger("detr_distill").handlers:
        if isinstance(handler, LogFile):
            handler.handle(record)
