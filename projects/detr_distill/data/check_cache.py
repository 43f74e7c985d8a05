"""What was found when a set was checked, kept in the user's cache folder until one of its files changes.

An entry is found by the content of the annotation file and by the settings that decide what is checked; it counts as
long as the folders of the images hold the same files of the same size and time. Whatever is wrong with the cache, the
set is checked anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..checkpoint.files import write_atomically

logger = logging.getLogger(__name__)


def cache_folder(part: str = "checks") -> Path:
    """``$XDG_CACHE_HOME/detr_distill/PART``, by default below ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "detr_distill" / part


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_file(annotation_file: str, settings: Iterable[object]) -> Path | None:
    """Where the entry of a set is, or would be; None for an annotation file that cannot be read here.

    Args:
        annotation_file: path. settings: what decides, beside the files, what is found.
    """
    try:
        content = hash_file(annotation_file)
    except OSError:
        return None
    text = json.dumps([content, _code_of_checks(), *map(str, settings)])
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def read_entry(file: Path) -> Any:
    """What :func:`write_entry` kept, where the folders are as they were; None otherwise."""
    try:
        content = json.loads(file.read_bytes())
        if content["listing"] == listing_digest(content["folders"]):
            return content["found"]
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged, or of somebody else
        logger.debug("no entry of checks in %s", file)
    return None


def write_entry(file: Path, folders: Iterable[str], found: Mapping[str, Any]) -> None:
    """Keeps what was found, as JSON; a cache that cannot be written is done without.

    Args:
        file: of :func:`entry_file`. folders: that hold the images. found: what JSON can hold.
    """
    folders = sorted({os.path.abspath(folder) for folder in folders})
    try:
        entry = {"folders": folders, "listing": listing_digest(folders), "found": found}
        write_atomically(file, lambda stream: stream.write(json.dumps(entry).encode()))
    except OSError as error:
        logger.debug("no entry of checks can be kept: %s", error)


def listing_digest(folders: Iterable[str]) -> str:
    """SHA-256 over name, size and time of change of the files that folders hold, without what is below them."""
    digest = hashlib.sha256()
    for folder in folders:
        with os.scandir(folder) as entries:
            rows = sorted(f"{e.name}\0{(s := e.stat()).st_size}\0{s.st_mtime_ns}\n" for e in entries if e.is_file())
        digest.update(f"{folder}\0{len(rows)}\n".encode())
        digest.update("".join(rows).encode(errors="surrogateescape"))
    return digest.hexdigest()


@cache
def _code_of_checks() -> str:
    """Changes with the code of this folder, so that what another version found does not count."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
