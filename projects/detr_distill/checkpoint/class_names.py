"""The names of a detector's classes, kept beside its weights."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from ..config.files import complete_path

CLASS_NAMES = "class_names"  # key beside the weights of a .pth file, and in the header of a .safetensors file


def stored_class_names(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Class names that a checkpoint was saved with; None where it has none or cannot be read.

    No tensor is read; what is wrong with a file is said where its weights are loaded.
    """
    path = Path(complete_path(os.path.expanduser(path)))
    if not path.is_file():
        return None
    try:
        if path.suffix == ".safetensors":
            return names_in_header(path)
        return names_in(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # a damaged file raises whatever its reader stumbles over first
        return None


def normal_names(names: Iterable[str]) -> list[str]:
    """Names in Unicode's composed form (NFC): a letter with an accent is one character, however it was typed."""
    return [unicodedata.normalize("NFC", name) for name in names]


def names_twice(names: Iterable[str]) -> list[str]:
    """Names that stand more than once in a list, each once."""
    return [name for name, count in Counter(normal_names(names)).items() if count > 1]


def differing_names(stored: Sequence[str] | None, own: Sequence[str] | None) -> tuple[str, bool]:
    """In what a checkpoint's classes differ from those of the data that it is used for.

    Returns:
        Words, empty where they agree or one list is unknown; and whether a name that both have has another index, so
        that rows are of other classes for certain.
    """
    if stored is None or own is None:
        return "", False
    theirs, mine = normal_names(stored), normal_names(own)
    if theirs == mine:
        return "", False
    at = next((n for n, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), min(len(theirs), len(mine)))
    moved = any(name in mine and mine.index(name) != index for index, name in enumerate(theirs))
    shown = slice(at, at + 5)
    return f"from class {at} on it names {list(stored)[shown]}, and the data {list(own)[shown]}", moved


def names_in(content: Any) -> tuple[str, ...] | None:
    """Class names among the entries of a checkpoint."""
    names = content.get(CLASS_NAMES) if isinstance(content, Mapping) else None
    return tuple(names) if names and isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def names_in_header(path: Path) -> tuple[str, ...] | None:
    """Class names in the header of a ``.safetensors`` file."""
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata() or {}
    return names_in({CLASS_NAMES: json.loads(header.get(CLASS_NAMES, "null"))})


def header(names: Sequence[str] | None) -> dict[str, str] | None:
    """The header of a ``.safetensors`` file that keeps class names."""
    return {CLASS_NAMES: json.dumps(list(names))} if names else None


def entry(names: Sequence[str] | None) -> dict[str, list[str]]:
    """What a ``.pth`` file keeps beside its weights."""
    return {CLASS_NAMES: list(names)} if names else {}
