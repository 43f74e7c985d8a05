"""How a user's error leaves the program: one block on stderr and in the log, exit status 1."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import DetrDistillError

TRACEBACK_VARIABLE = "DETR_DISTILL_TRACEBACK"


class UserErrorExit(SystemExit):
    """Ends a process whose error has been reported."""


def wants_traceback() -> bool:
    """Whether the user asked for stack traces by the environment."""
    return os.environ.get(TRACEBACK_VARIABLE) == "1"


def format_block(error: BaseException) -> str:
    """The error between two lines, with how to see its stack trace."""
    line = "-" * 80
    return f"{line}\n{type(error).__name__}: {error}\n{line}\n(the stack trace of this error: {TRACEBACK_VARIABLE}=1)"


@contextlib.contextmanager
def report_user_errors(message_file: str | None = None) -> Iterator[None]:
    """Turns a user-facing error into a message and ``UserErrorExit(1)``; other errors pass.

    Args:
        message_file: write the message there instead of to stderr: of several processes that fail, the first alone
            is heard, by the process that started them.
    """
    try:
        yield
    except DetrDistillError as error:
        if wants_traceback():
            raise
        block = format_block(error)
        _write_to_log_files(block)
        if message_file is None:
            print(block, file=sys.stderr, flush=True)
        else:
            with contextlib.suppress(FileExistsError), open(message_file, "x") as file:
                file.write(block)
        raise UserErrorExit(1) from error


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
        stream = getattr(handler, "stream", None)
        if stream not in (sys.stdout, sys.stderr):
            handler.handle(record)
