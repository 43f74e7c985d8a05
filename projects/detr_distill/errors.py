"""Errors that a user can act on: the command line prints them as one block, without a stack trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class DetrDistillError(Exception):
    """Base of every user-facing error; the message names what was found, what was expected and what to do."""


class ConfigError(DetrDistillError):
    """A configuration key, a command-line flag or an output folder that cannot be used as it is."""


class CheckpointError(DetrDistillError):
    """Weights that are missing, damaged, unsafe to read, or made for another model."""


class NonFiniteError(DetrDistillError):
    """A loss, a gradient or a matching cost became infinite or NaN."""


class DataError(DetrDistillError):
    """Something is wrong with a dataset or with a setting that selects one."""


class OutputError(DetrDistillError, OSError):
    """A file that cannot be written: no room on its disk, no permission, or no place for a file."""


def first(items: Iterable[Any], shown: int = 5, count: int | None = None) -> str:
    """For a message: the first few of many, and how many more there are.

    Args:
        items: what is listed. shown: of them, at most. count: of all, where ``items`` are some of them.
    """
    found = [str(item) for item in items]
    more = (len(found) if count is None else count) - shown
    return ", ".join(found[:shown]) + (f" and {more} more" if more > 0 else "")
