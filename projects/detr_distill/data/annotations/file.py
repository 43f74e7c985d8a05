"""The one reader of COCO-format annotation files: what it returns has the types and references that are relied on."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import first
from .areas import read_areas, read_numbers
from .fields import (
    Field,
    Findings,
    are_boxes,
    are_sides,
    are_texts,
    cut,
    entry_name,
    short,
    to_box,
    to_flag,
    to_id,
    to_side,
    to_text,
    to_whole,
)
from .text import SECTIONS, collector_off, read_contents, read_section

_WHOLE, _TEXT = frozenset({int}), frozenset({str})
_ID = "a whole number or a text"
_NUMBER = "a whole number"
_NAME = "a text"
_SIDE = "a positive whole number"
_FLAG = "0 or 1"
_IMAGES = (
    Field("images", "id", _ID, _WHOLE, to_id),
    Field("images", "file_name", _NAME, _TEXT, to_text, fits=are_texts),
    Field("images", "width", _SIDE, _WHOLE, to_side, fits=are_sides),
    Field("images", "height", _SIDE, _WHOLE, to_side, fits=are_sides),
)
_CATEGORIES = (
    Field("categories", "id", _NUMBER, _WHOLE, to_whole),
    Field("categories", "name", _NAME, _TEXT, to_text, fits=are_texts),
)
_ANNOTATIONS = (
    Field("annotations", "id", _ID, _WHOLE, to_id),
    Field("annotations", "image_id", _ID, _WHOLE, to_id),
    Field("annotations", "category_id", _NUMBER, _WHOLE, to_whole),
    Field("annotations", "iscrowd", _FLAG, _WHOLE, to_flag, default=0, fits=lambda values: set(values) <= {0, 1}),
    Field("annotations", "bbox", "four finite numbers", frozenset({list}), to_box, fits=are_boxes),
)
_IGNORE = Field("annotations", "ignore", _FLAG, _WHOLE, to_flag, default=0, fits=lambda values: set(values) <= {0, 1})


@dataclass
class AnnotationFile:
    """An annotation file whose ids, references, boxes, flags and texts are checked.

    N annotations. Entries are the file's own dicts, in its order, with what they need in the one form that the fields
    below have; keys that nothing reads stay as they are, segmentations among them.

    Attributes:
        path: the file.
        images: with ``id`` (int, or a text that is no number), ``file_name``, ``width`` and ``height`` (positive int).
        annotations: with ``id``, ``image_id``, ``category_id``, ``iscrowd`` (0 or 1) and ``bbox`` (four finite
            numbers: x, y, width, height in pixels); ``area`` only where it is a positive number that fits the box.
        categories: with ``id`` (int) and ``name``.
        annotated: False for a file without the section "annotations", such as COCO's test images.
        boxes: (N, 4) float64, the annotations' ``bbox``. areas: (N,) float64, NaN where unknown or not possible.
        given_areas: (N,) float64, as the file has them, NaN where that is no number.
        warnings: what was read in spite of its form, a sentence for each kind.
    """

    path: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    annotated: bool
    boxes: np.ndarray
    areas: np.ndarray
    given_areas: np.ndarray
    warnings: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the categories' ids."""
        return tuple(item["name"] for item in sorted(self.categories, key=lambda item: item["id"]))

    @property
    def crowds(self) -> np.ndarray:
        """(N,) bool: which annotations are crowds."""
        return np.array([item["iscrowd"] for item in self.annotations], dtype=bool)


def id_order(value: int | str) -> tuple[bool, int, str]:
    """Sorts ids: numbers first, then texts."""
    return (True, 0, value) if isinstance(value, str) else (False, value, "")


def read_annotation_file(path: str | os.PathLike) -> AnnotationFile:
    """Reads an annotation file and checks every field that training or evaluation uses.

    Args:
        path: COCO instances JSON in UTF-8, UTF-16 or UTF-32. Ids may be whole numbers of any size, also written as text
            or as 7.0; image and annotation ids may be texts. Category ids may have gaps.

    Raises:
        DataError: it cannot be read, or contradicts itself. All kinds of faults are counted, the first few named.
    """
    path = os.fspath(path)
    with collector_off():
        contents = read_contents(path)
        findings = Findings(path)
        annotated = "annotations" in contents
        images, categories = (_section(contents, section, findings) for section in ("images", "categories"))
        annotations = _section(contents, "annotations", findings) if annotated else []
        findings.stop_at_faults()  # what follows takes the entries' form for granted
        _read_fields(_IMAGES, images, findings)
        _read_fields(_CATEGORIES, categories, findings)
        _read_fields(_ANNOTATIONS, annotations, findings)
        findings.stop_at_faults()
        _check_unique(images, annotations, categories, findings)
        _check_references(images, annotations, categories, findings)
        _check_ignored(annotations, findings)
        findings.stop_at_faults()
        boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
        given = read_numbers([item.get("area") for item in annotations])
        areas = read_areas(annotations, boxes, given, findings)
    return AnnotationFile(path, images, annotations, categories, annotated, boxes, areas, given, findings.warnings())


def read_class_names(annotation_file: str | os.PathLike) -> tuple[str, ...]:
    """Class names of a COCO-format annotation file in the order of their ids, without reading anything else.

    Raises:
        DataError: the file is missing or not COCO's format.
    """
    return tuple(read_categories(annotation_file).values())


def read_categories(annotation_file: str | os.PathLike) -> dict[int, str]:
    """Category id -> class name, in the order of the ids; see :func:`read_class_names`."""
    path = os.fspath(annotation_file)
    with collector_off():
        findings = Findings(path)
        categories = _section(read_section(path, "categories"), "categories", findings)
        findings.stop_at_faults()
        _read_fields(_CATEGORIES, categories, findings)
        findings.stop_at_faults()
        _check_unique([], [], categories, findings)
        findings.stop_at_faults()
    return {item["id"]: item["name"] for item in sorted(categories, key=lambda item: item["id"])}


def has_categories(annotation_file: str | os.PathLike) -> bool:
    """False for a file of images alone."""
    return bool(read_section(os.fspath(annotation_file), "categories").get("categories"))


def read_images(annotation_file: str | os.PathLike) -> tuple[list[dict], bool]:
    """The section "images" of a COCO-format file, checked; the others may be missing or faulty.

    Returns:
        The images, and whether the file has annotations too.

    Raises:
        DataError: the file is missing, or the section is not COCO's format.
    """
    path = os.fspath(annotation_file)
    with collector_off():
        findings = Findings(path)
        contents = read_contents(path)
        annotated = bool(contents.get("annotations"))
        if contents.get("images") == []:
            return [], annotated
        images = _section(contents, "images", findings)
        findings.stop_at_faults()
        _read_fields(_IMAGES, images, findings)
        findings.stop_at_faults()
        _check_unique(images, [], [], findings)
        findings.stop_at_faults()
    return images, annotated


def _section(contents: dict[str, Any], section: str, findings: Findings) -> list[dict]:
    items = contents.get(section)
    if not isinstance(items, list) or (not items and section != "annotations"):
        kind = f"section {section!r} is missing, empty or no list; COCO's format needs {', '.join(SECTIONS)}"
        findings.fault(kind, f"found {first(map(short, contents)) or 'nothing'}")
        return []
    if set(map(type, items)) - {dict}:
        for number, item in enumerate(items):
            if not isinstance(item, dict):
                findings.fault(f"entries of {section!r} that are no objects", entry_name(section, item, number), item)
    return items


def _read_fields(fields: tuple[Field, ...], items: list[dict], findings: Findings) -> None:
    for column in fields:
        column.read(items, findings)


def _check_unique(images: list[dict], annotations: list[dict], categories: list[dict], findings: Findings) -> None:
    for section, items in (("images", images), ("annotations", annotations), ("categories", categories)):
        _find_repeated(f"ids used twice in {section!r}, to be made unique", [item["id"] for item in items], findings)
    # Class lists are matched by name; one character may be written as one code or as two.
    names = [unicodedata.normalize("NFC", item["name"].strip()) for item in categories]
    _find_repeated("names used twice in 'categories', to be made unique", names, findings)
    files = [os.path.normpath(item["file_name"]) for item in images]
    _find_repeated(
        "image files under two ids, each without the other's objects, to be joined under one", files, findings
    )


def _find_repeated(kind: str, values: list, findings: Findings) -> None:
    if len(set(values)) == len(values):
        return
    for value, count in Counter(values).items():
        if count > 1:
            findings.fault(kind, cut(str(value), 120))


def _check_references(images: list[dict], annotations: list[dict], categories: list[dict], findings: Findings) -> None:
    """Every annotation belongs to an image and a category of the file."""
    for section, items, key in (("images", images, "image_id"), ("categories", categories, "category_id")):
        known = {item["id"] for item in items}
        if {item[key] for item in annotations} <= known:
            continue
        kind = f"annotations whose {key} {section!r} does not hold"
        for item in annotations:
            if item[key] not in known:
                findings.fault(kind, f"{_name(item)} ({key} {cut(str(item[key]))})")


def _name(annotation: dict) -> str:
    return entry_name("annotations", annotation, 0)


def _check_ignored(annotations: list[dict], findings: Findings) -> None:
    """``ignore`` is no key of COCO's format; objects that are to be ignored are crowds there."""
    marked = [item for item in annotations if "ignore" in item]
    kind = "annotations with ignore 1, which COCO's format does not know: give them iscrowd 1 instead"
    for item, ignored in zip(marked, _IGNORE.read(marked, findings), strict=True):
        if ignored and not item["iscrowd"]:
            findings.fault(kind, _name(item))
