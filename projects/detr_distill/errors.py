"""Errors that a user can act on: the command line prints them as one block, without a stack trace."""

from __future__ import annotations


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
