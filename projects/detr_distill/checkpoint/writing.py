"""Writing that never leaves half a file, and says in words why a file cannot be written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..errors import OutputError

_ROOM = "Make room there, or name another place."
_RIGHTS = "Name a place that this user may write to."
_IN_THE_WAY = "A file or folder of that name is in the way. Name another place."
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), _IN_THE_WAY),
}


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Replaces a file in one step: whoever reads it, or kills us, finds the old content or the new, never a mixture.

    Args:
        path: of the file. write: writes the content to an open binary file.

    Raises:
        OutputError: it cannot be written; what was there before is as it was, and nothing is left beside it.
    """
    path = Path(path)
    # One temporary name per file: the next save of the same name cleans up after a killed one.
    temporary = path.with_name(path.name + ".tmp")
    disk_file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk_file = _DiskFile(temporary, "w")
        with io.BufferedWriter(disk_file) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        known = None if disk_file is None else disk_file.fault
        fault = error if isinstance(error, OSError) else known
        if fault is None:
            raise
        raise OutputError(f"{explain_unwritable(path, fault)} What was there before is unharmed.") from error


class _DiskFile(io.FileIO):
    """Remembers why a write failed: of a full disk torch says "unexpected pos", whatever the system said."""

    fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.fault = error
            raise


def _sync_folder(path: Path) -> None:
    """The new name itself must survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def explain_unwritable(path: str | os.PathLike[str], fault: OSError) -> str:
    """Why a file cannot be written, and what to do."""
    remedy = _REMEDIES.get(fault.errno or 0, "Name another place.")
    return f"{path} cannot be written: {fault.strerror or fault}. {remedy}"


def check_place(option: str, path: str | os.PathLike[str]) -> None:
    """Checks before long work that a file can be written, with the folders above it that do not exist yet.

    Args:
        option: command-line option that names the file, for the message. path: of the file.

    Raises:
        OutputError: it is a folder, or no folder above it can be written to.
    """
    if Path(path).is_dir():
        raise OutputError(f"{option} {Path(path).absolute()}: that is a folder. Name a file to write.")
    _check_above(option, path, "file")


def check_folder_place(option: str, path: str | os.PathLike[str], sign: str = "config.json") -> None:
    """Checks the same of a folder that is to be written in place of an earlier one.

    Args:
        sign: a file that the earlier one has, if it is one.

    Raises:
        OutputError: it is a file, it holds something else, or no folder above it can be written to.
    """
    folder = Path(path).absolute()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / sign).is_file():
        raise OutputError(
            f"{option} {folder} holds other files ({min(entry.name for entry in folder.iterdir())}) and no {sign}: it "
            "would be replaced. Name a new folder."
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{option} {folder}: that is a file. Name a folder to write.")
    _check_above(option, path, "folder")


def _check_above(option: str, path: str | os.PathLike[str], kind: str) -> None:
    path = Path(path).absolute()
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputError(f"{option} {path}: {above} is no folder that can be written to. Name a {kind} to write.")
