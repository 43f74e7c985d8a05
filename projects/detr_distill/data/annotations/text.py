"""The text of an annotation file as Python's values; what is wrong with it becomes a ``DataError`` that names it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from detectron2.utils.file_io import PathManager

from ...errors import DataError, first
from .fields import short

_AFTER_KEY = re.compile(r"\s*:\s*")

SECTIONS = ("images", "annotations", "categories")
# Keys of entries that are read.
_KEYS = (
    "id", "file_name", "width", "height", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore",
    "segmentation", "keypoints", "name",
)  # fmt: skip


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keeps Python's garbage collector from walking over millions of new values again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_contents(path: str) -> dict[str, Any]:
    """The object that a JSON file holds, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Args:
        path: local path, or any address that detectron2's ``PathManager`` opens.

    Raises:
        DataError: the file cannot be read, is no text, is not JSON, holds no object, or has a key twice in one object.
    """
    text = _decode(path, _read_bytes(path))
    try:
        contents = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"Annotation file {path} is not JSON: {error}.{_hint(text)} Restore it, or export it again."
        ) from error
    except RecursionError as error:
        raise DataError(f"Annotation file {path} is nested too deeply to be COCO's format. Export it again.") from error
    if not isinstance(contents, dict):
        raise DataError(
            f"Annotation file {path} holds a {type(contents).__name__}; COCO's format is an object with images, "
            "annotations and categories. Export it in COCO's instances format."
        )
    _check_keys_once(path, text, contents)
    return contents


def read_section(path: str, section: str) -> dict[str, Any]:
    """An object with one section of a file, which is not parsed beyond it where that is possible.

    A class list is some lines of a file that takes seconds to parse.

    Raises:
        DataError: as :func:`read_contents`, as far as the file is read.
    """
    text = _decode(path, _read_bytes(path))
    key = f'"{section}"'
    if text.count(key) == 1:
        value = _AFTER_KEY.match(text, text.index(key) + len(key))
        if value is not None:
            with contextlib.suppress(ValueError, RecursionError):  # the whole file says better what is wrong
                return {section: json.JSONDecoder().raw_decode(text, value.end())[0]}
    return read_contents(path)


def _read_bytes(path: str) -> bytes:
    opener = PathManager.open if "://" in path else open
    try:
        with opener(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"Annotation file {path} cannot be read: {reason}. "
            "Correct the path in DATASETS.REGISTER, or put the file there."
        ) from error


def _decode(path: str, data: bytes) -> str:
    if data[:2] == b"\x1f\x8b" or data[:2] == b"PK":
        raise DataError(f"Annotation file {path} is a compressed archive. Unpack it, and name the JSON file inside.")
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise DataError(
            f"Annotation file {path} is in an encoding that JSON does not know ({error}). "
            "Open it in an editor and save it as UTF-8."
        ) from error


def _hint(text: str) -> str:
    if text.startswith("version https://git-lfs"):
        return " It is a pointer of Git LFS; get the file itself with: git lfs pull."
    return " It is empty." if not text.strip() else ""


def _check_keys_once(path: str, text: str, contents: dict[str, Any]) -> None:
    """JSON keeps the last of two equal keys, and would lose what the first holds.

    A key that the text has no oftener than its objects do stands once in each; that is counted in C. Where it has one
    oftener, which may be a value of the same text, the file is parsed again with a look at each object.
    """
    groups = [value if isinstance(value, list) else [value] for value in [contents, *contents.values()]]
    entries = [[entry for entry in group if isinstance(entry, dict)] for group in groups]
    suspects = frozenset(
        key
        for key in (*SECTIONS, *_KEYS)
        if text.count(f'"{key}"') > sum(sum(map(operator.contains, group, itertools.repeat(key))) for group in entries)
    )
    if not suspects:
        return
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            repeated = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            found = ", ".join(key for key in repeated if key in suspects)
            if found:
                twice.append(found + (f" (id {short(result['id'], 40)})" if "id" in result else ""))
        return result

    json.loads(text, object_pairs_hook=look)
    if twice:
        raise DataError(
            f"Annotation file {path} has keys more than once in one object, of which all but the last would be lost "
            f"({len(twice)}): {first(twice)}. Join them, or take one out."
        )
