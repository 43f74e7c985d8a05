"""Files that a configuration names."""

from __future__ import annotations

import os

from ..errors import ConfigError


def find_file(path: str, key: str) -> str:
    """A path as given, or relative to the project's root when it is not found from the current folder.

    Raises:
        ConfigError: a file is named that exists in neither place.
    """
    if not path or "://" in path or os.path.exists(path):
        return path
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    beside = os.path.join(root, path)
    if os.path.exists(beside):
        return beside
    raise ConfigError(f"{key} names {path}, which does not exist. Give a path from the current folder or a full path.")
