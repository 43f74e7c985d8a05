"""Files that a configuration or a command line names."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
_CARRIED = _PACKAGE / "_files"
# The folder of configs/ and weights/: setup.py copies both into a built package; a checkout has them at its root.
SHIPPED = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent.parent


def complete_path(path: str) -> str:
    """A path, ``~`` being the home folder; or the project's own file where it is not found from the current folder."""
    path = path if "://" in path else os.path.expanduser(path)
    if not path or "://" in path or os.path.exists(path):
        return path
    shipped = SHIPPED / path
    return str(shipped) if shipped.exists() else path


def find_file(path: str, key: str) -> str:
    """A path as given, or the project's own file where it is not found from the current folder.

    Args:
        path: of a file, an address with ``://``, or empty. key: that names it, for the message.

    Raises:
        ConfigError: a file is named that exists in neither place.
    """
    found = complete_path(path)
    if found and "://" not in found and not os.path.exists(found):
        raise ConfigError(
            f"{key} names {path}, which does not exist. Give a path from the current folder or a full path."
        )
    return found
