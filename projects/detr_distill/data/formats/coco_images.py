"""Tells COCO's annotation files from other JSON, and finds the folder of their images, which they do not name."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...errors import DataError
from ..annotations.text import read_contents

_HEAD = 2**20  # bytes that are looked at: a file of all of COCO is half a GB
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_TAKEN_OFF = ("instances_", "_annotations", ".coco")


def looks_like_coco(file: Path) -> bool:
    """Whether a JSON file begins as one of COCO's instances: with a dictionary of images, annotations or categories."""
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as opened:
            head = opened.read(_HEAD).lstrip()
    except OSError:
        return False
    return head.startswith("{") and any(f'"{name}"' in head for name in ("images", "annotations", "categories"))


def place_of_images(file: Path, key: str) -> str:
    """The folder in which the images of a COCO file are: beside it, or in the usual places around it.

    Args:
        key: option that names the file, for messages.

    Raises:
        DataError: the first image that the file names is in none of them.
    """
    name = _first_image(file)
    stem = file.stem
    for part in _TAKEN_OFF:
        stem = stem.replace(part, "")
    above = file.parent.parent
    folders = [
        *(file.parent, file.parent / "images", file.parent / stem, file.parent / "images" / stem),
        *(above / stem, above / "images", above / "images" / stem, above),
    ]
    found = next((folder for folder in folders if name and (folder / name).is_file()), None)
    if found is None:
        tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        raise DataError(
            f"{key} {file}: its first image, {name or 'which it does not name'}, is in none of the folders {tried}. "
            f"Name the folder with {key}-images."
        )
    return str(found)


def _first_image(file: Path) -> str:
    """Name of the first image, empty where the file names none; read from its beginning where it stands there."""
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        found = _FILE_NAME.search(opened.read(_HEAD))
    if found:
        return str(json.loads(found[1]))
    images = read_contents(str(file)).get("images")
    image = images[0] if isinstance(images, list) and images else None
    return str(image.get("file_name", "")) if isinstance(image, dict) else ""
