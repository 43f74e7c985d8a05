"""YOLO: one text file for each image, a line ``class x y width height`` for each object, and a YAML file of the set.

x and y are the box's centre; all four are shares of the image's width and height.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...errors import DataError, first
from ..image_files import upright_size
from .content import Content, Labelled, list_images

SPLITS = ("train", "val", "test")
_ROUNDING = 1e-4  # a share may be this much outside of 0 to 1: written with few digits


def read_yolo(description: str, images: str) -> dict:
    """A YOLO set as the content of a COCO instances file.

    Args:
        description: the YAML file, with ``names`` (a list, or a dictionary from 0 on) and ``path``, ``train``, ``val``,
            ``test``. images: one of these three words, or a folder of images. The labels of ``.../images/a/b.jpg`` are
            ``.../labels/a/b.txt``, or lie beside it; an image without such a file has no objects.

    Raises:
        DataError: no class names, no such split; with file and line: not five numbers, a class that is none, a share
            outside of 0 to 1.
    """
    settings = _read_settings(Path(description))
    names = _class_names(settings, description)
    folder = _image_folder(settings, Path(description), images)
    content = Content(description, names)
    for name in list_images(folder, description):
        size = upright_size(folder / name)
        content.add(os.path.abspath(folder / name), size, _read_labels(_label_file(folder / name), size, names))
    return content.as_coco()


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}. Correct the file or the path.") from error
    if not isinstance(settings, dict) or "names" not in settings:
        raise DataError(
            f"{path} has no 'names'. A YOLO set's file lists its classes there, in the order of their numbers."
        )
    return settings


def _class_names(settings: dict[str, Any], source: str) -> tuple[str, ...]:
    names = settings["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{source}: the numbers of 'names' are {sorted(names, key=str)}; expected 0 to {len(names) - 1}."
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{source}: 'names' is {names!r}; expected a list of class names.")
    odd = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int | float)]
    if odd:
        raise DataError(
            f"{source}: 'names' has {first(map(repr, odd))}, which YAML does not read as a name. Put it in quotes."
        )
    count = settings.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{source}: 'nc' is {count!r}, but 'names' has {len(names)} classes. Correct one of them.")
    return tuple(str(name) for name in names)


def _image_folder(settings: dict[str, Any], description: Path, images: str) -> Path:
    if images not in SPLITS:
        return Path(images)
    given = settings.get(images)
    if not isinstance(given, str):
        raise DataError(
            f"{description}: {images!r} is {given!r}; expected one folder of images. Name the folder in "
            "DATASETS.REGISTER instead, one set for each."
        )
    root = settings.get("path") or ""
    if not isinstance(root, str):
        raise DataError(f"{description}: 'path' is {root!r}; expected a folder, or nothing. Put it in quotes.")
    return description.parent / root / given


def _label_file(image: Path) -> Path:
    """``images`` in the path becomes ``labels``, the last where there are several."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        beside = Path(*parts)
        if beside.is_file():
            return beside
    return image.with_suffix(".txt")


def _read_labels(path: Path, size: tuple[int, int], names: tuple[str, ...]) -> Iterator[Labelled]:
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or export it again.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _read_line(line, f"{path}, line {number}", size, names)


def _read_line(line: str, place: str, size: tuple[int, int], names: tuple[str, ...]) -> Labelled:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise DataError(f"{place}: {line!r} is not five numbers: class x y width height.") from error
    if len(values) != 5:
        hint = " It looks like a polygon: export boxes instead." if len(values) > 5 and len(values) % 2 else ""
        raise DataError(f"{place}: {len(values)} numbers ({line!r}); expected five: class x y width height.{hint}")
    label, x, y, width, height = values
    if label not in range(len(names)):
        raise DataError(f"{place}: class {line.split()[0]}, but 'names' has the classes 0 to {len(names) - 1}.")
    if not all(math.isfinite(value) and -_ROUNDING <= value <= 1 + _ROUNDING for value in values[1:]):
        raise DataError(
            f"{place}: {line!r} has a value outside of 0 to 1. x, y, width and height are shares of the image, not "
            "pixels; correct the line, or export the set again."
        )
    box = ((x - width / 2) * size[0], (y - height / 2) * size[1], width * size[0], height * size[1])
    return Labelled(place, names[int(label)], box)
