"""Reads COCO-format annotation files and says in words what is wrong with one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from ..errors import DataError
from .bad_boxes import check_boxes

_NAMED = 5  # missing files or faulty entries that an error message lists
_ID, _TEXT, _LENGTH, _BOX = "a whole number", "a text", "a positive number", "four numbers"
# Section -> key that every entry needs -> what it must be. COCO's evaluation takes no other ids than whole numbers.
_REQUIRED = {
    "images": {"id": _ID, "file_name": _TEXT, "width": _LENGTH, "height": _LENGTH},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID, "bbox": _BOX},
    "categories": {"id": _ID, "name": _TEXT},
}


def load_coco(
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike,
    name: str | None = None,
    bad_boxes: str = "error",
) -> list[dict]:
    """Loads a COCO-format dataset after checking the annotation file and that every image file is there.

    Args:
        annotation_file: COCO instances JSON. Category ids may have gaps.
        image_folder: folder to which the file names in the annotation file are relative.
        name: the dataset's registered name, whose metadata gets the class names and the mapping of category ids
            to 0, 1, ...; None leaves the category ids as they are in the file.
        bad_boxes: see ``bad_boxes.check_boxes``.

    Returns:
        Dicts in detectron2's dataset format; every annotation keeps its ``id``.

    Raises:
        DataError: a file is missing, the annotation file is not COCO's format or contradicts itself, or has bad boxes.
    """
    path = str(annotation_file)
    contents = _read_json(path)
    # A file of test images has none, as COCO's test-dev: there is nothing to learn or to measure by, only to predict.
    contents.setdefault("annotations", [])
    _check_entries(path, contents)
    _check_references(path, contents)
    _check_images(path, str(image_folder), [image["file_name"] for image in contents["images"]])
    del contents  # detectron2 parses the file again; two copies of a large one would not fit everywhere
    try:
        records = load_coco_json(path, str(image_folder), name, extra_annotation_keys=["id"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"Annotation file {path} is not COCO's instances format: {error}") from error
    check_boxes(records, bad_boxes, f"Annotation file {path}")
    return records


def read_class_names(annotation_file: str | os.PathLike) -> tuple[str, ...]:
    """Class names of a COCO-format annotation file in the order of their ids, without loading the dataset.

    Raises:
        DataError: the file is missing or not COCO's format.
    """
    path = str(annotation_file)
    contents = _read_json(path)
    _check_entries(path, contents, ("categories",))
    return tuple(item["name"] for item in sorted(contents["categories"], key=lambda item: item["id"]))


def _read_json(path: str) -> dict:
    try:
        contents = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(
            f"Annotation file {path} cannot be read: {error.strerror or error}. "
            "Correct the path in DATASETS.REGISTER, or put the file there."
        ) from error
    except ValueError as error:
        raise DataError(f"Annotation file {path} is not JSON: {error}. Restore it, or export it again.") from error
    if not isinstance(contents, dict):
        raise DataError(f"Annotation file {path} holds a {type(contents).__name__}; COCO's format is an object.")
    return contents


def _check_entries(path: str, contents: dict, sections: Iterable[str] = tuple(_REQUIRED)) -> None:
    """Every section is a list of objects with the keys and types that are needed; ids and class names are unique."""
    for section in sections:
        items = contents.get(section)
        if not isinstance(items, list) or (not items and section != "annotations"):
            found = ", ".join(contents) or "nothing"
            raise DataError(
                f"Annotation file {path} has no {section!r} (found: {found}). "
                "COCO's instances format needs images, annotations and categories."
            )
        for item in items:
            _check_entry(path, section, item)
        _check_unique(path, section, "id", items)
        if section == "categories":
            _check_unique(path, section, "name", items)  # class lists are matched by name


def _check_entry(path: str, section: str, item: Any) -> None:
    for key, expected in _REQUIRED[section].items():
        if not isinstance(item, dict) or key not in item:
            raise DataError(f"Annotation file {path}: an entry of {section!r} lacks {key!r}: {_short(item)}")
        if not _IS[expected](item[key]):
            raise DataError(
                f"Annotation file {path}: an entry of {section!r} has {key} {_short(item[key])}; expected {expected}. "
                f"Correct the entry: {_short(item)}"
            )


def _check_unique(path: str, section: str, key: str, items: list[dict]) -> None:
    counts = Counter(item[key] for item in items)
    if len(counts) < len(items):
        twice = [value for value, count in counts.items() if count > 1]
        raise DataError(f"Annotation file {path}: {key}s used twice in {section!r}: {_first(twice)}. Make them unique.")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    _ID: _is_id,
    _TEXT: lambda value: isinstance(value, str),
    _LENGTH: lambda value: _is_number(value) and value > 0,
    _BOX: lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)),
}


def _check_references(path: str, contents: dict) -> None:
    """Every annotation belongs to an image and a category of the file."""
    for section, key in (("images", "image_id"), ("categories", "category_id")):
        known = {item["id"] for item in contents[section]}
        strays = [item for item in contents["annotations"] if item[key] not in known]
        if strays:
            raise DataError(
                f"Annotation file {path}: {len(strays)} annotations have a {key} that {section!r} does not hold: "
                + _first(f"annotation {item['id']} ({key} {item[key]})" for item in strays)
                + ". Correct the ids, or remove these annotations."
            )


def _check_images(path: str, folder: str, names: list[str]) -> None:
    """Every image file exists; one listing a folder instead of one query a file, which is slow on network disks."""
    if "://" in folder:
        return
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listings:
            listings[parent] = frozenset(os.listdir(parent or ".")) if os.path.isdir(parent or ".") else frozenset()
        if base not in listings[parent]:
            missing.append(name)
    if missing:
        raise DataError(
            f"Image folder {folder} lacks {len(missing)} of the {len(names)} images that {path} names: "
            f"{_first(missing)}. Correct the folder in DATASETS.REGISTER, or put the images there."
        )


def _first(items: Iterable[Hashable]) -> str:
    found = [str(item) for item in items]
    return ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 120 else f"{text[:117]}..."
