"""One process at a time writes a run's folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ...checkpoint.writing import explain_unwritable
from ...errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
# What some network disks answer that know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()


def _let_go() -> None:
    """A loader's process outlives a killed run by seconds, and must not keep the run's lock for so long."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path, key: str = "OUTPUT_DIR", hint: str = "") -> Iterator[None]:
    """Makes a folder and keeps it for this process, until the context ends or the process dies, however it does.

    The lock is the kernel's, on ``run.lock`` inside; the file itself stays and says nothing without it.

    Args:
        folder: of the run. key: or option that names it, for messages. hint: what else helps where it cannot be had.

    Raises:
        ConfigError: another process has it, on this machine or another, or it cannot be made or written to.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"{key} {explain_unwritable(folder, error)}{hint}") from error
    _held.add(descriptor)
    try:
        _take(descriptor, f"{key} {folder}")
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _take(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{name} is in use by {_owner(descriptor)}. Wait for its end or stop it, or name another folder: two "
            "runs in one would overwrite each other."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("The disk of %s knows no locks: start no second run in it.", name)
        return
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # on a full disk the lock itself still holds
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said yet
        return "another process"
