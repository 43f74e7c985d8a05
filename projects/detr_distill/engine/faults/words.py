"""Faults of the machine, in words: no room on a disk, in shared memory or in a GPU, a loader's process that died."""

from __future__ import annotations

import errno
import re

import torch
from torch.distributed import DistError
from torch.multiprocessing import ProcessExitedException

from ...checkpoint.writing import explain_unwritable
from ...errors import ConfigError, DataError, DetrDistillError, OutputError

# What says that the machine, and not the program, cannot go on.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_OPEN_FILES = re.compile(r"too many open files", re.IGNORECASE)
_SHARED_MEMORY = re.compile(r"bus error|shared memory ?\(shm\)|(file|object) </torch_", re.IGNORECASE)
_PEER_GONE = re.compile(r"connection (closed|reset|refused)|remote process exited|broken pipe", re.IGNORECASE)
# torch's words, and OpenCV's.
_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|Insufficient memory")
_LOADER_DIED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


def in_words(error: BaseException) -> DetrDistillError | None:
    """The user-facing error that says what an exception means; None where it is no user's business."""
    if isinstance(error, DetrDistillError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return ConfigError(
            f"The GPU's memory is full: {str(error).splitlines()[0]} Lower SOLVER.IMS_PER_BATCH and raise "
            "SOLVER.ACCUMULATE by as much, lower INPUT.MAX_SIZE_TRAIN, or set SOLVER.AMP.ENABLED True."
        )
    if isinstance(error, ProcessExitedException) and error.exit_code < 0:
        return ConfigError(
            f"Training process {error.error_index} of this machine was killed by {error.signal_name}, most often "
            "because the memory was full. Lower SOLVER.IMS_PER_BATCH or DATALOADER.NUM_WORKERS."
        )
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        return ConfigError(
            "The machine's memory has no room for what a step needs. Lower SOLVER.IMS_PER_BATCH, "
            "DATALOADER.NUM_WORKERS, INPUT.MIN_SIZE_TRAIN or INPUT.MAX_SIZE_TRAIN."
        )
    if not isinstance(error, RuntimeError | OSError):
        return None
    return _disk_fault(error) or _loader_fault(str(error)) or _peer_fault(error)


def _disk_fault(error: BaseException | None) -> OutputError | None:
    """Of an error, or of what it was raised in answer to: torch speaks of positions where a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return OutputError(explain_unwritable(error.filename or "A file", error))
        error = error.__cause__ or error.__context__
    return None


def _loader_fault(text: str) -> DataError | None:
    if _OPEN_FILES.search(text):
        return DataError("Too many files are open. Raise the limit (ulimit -n 65536), or lower DATALOADER.NUM_WORKERS.")
    if _SHARED_MEMORY.search(text):
        return DataError(
            "Shared memory (/dev/shm) is too small for the batches that the loader's processes hand over. Lower "
            "DATALOADER.NUM_WORKERS (0 needs none), or give the machine more: docker run --shm-size 8g."
        )
    if _LOADER_DIED.search(text):
        return DataError(
            "A process of the loader was killed, most often because the machine's memory was full. Lower "
            "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH."
        )
    return None


def _peer_fault(error: BaseException) -> ConfigError | None:
    """Of an exchange between processes, which raises whatever the network said."""
    if not isinstance(error, DistError) and not _PEER_GONE.search(str(error)):
        return None
    return ConfigError(
        f"Another training process is gone, or cannot be reached ({str(error).strip().splitlines()[0][:200]}). Its own "
        "message, where it had time for one, says why; one that was killed leaves none."
    )
