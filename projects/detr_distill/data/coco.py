"""Loads COCO-format data sets as detectron2's records, from annotation files that are checked first."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import DataError, first
from .annotations.box_convention import check_areas
from .annotations.file import AnnotationFile, id_order, read_annotation_file, read_class_names, read_images
from .annotations.masks import usable_segmentation
from .annotations.text import collector_off
from .bad_boxes import PLACE, ObjectBoxes, check_object_boxes, check_policy

__all__ = ["load_coco", "read_class_names"]


def load_coco(
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike,
    name: str | None = None,
    bad_boxes: str | None = "error",
    source: str = "",
) -> list[dict]:
    """Loads a COCO-format dataset after checking the annotation file and that every image file is there.

    Args:
        annotation_file: COCO instances JSON, see ``annotation_file.read_annotation_file``.
        image_folder: folder to which the file names in the annotation file are relative.
        name: the dataset's registered name, whose metadata gets the class names and the mapping of category ids
            to 0, 1, ...; None leaves the category ids as they are in the file.
        bad_boxes: see ``bad_boxes.check_boxes``; None leaves boxes as they are, unless the whole file is in another
            convention.
        source: what the user named in place of the annotation file, for messages about boxes.

    Returns:
        Dicts in detectron2's dataset format, in the order of the image ids; every annotation keeps its ``id``, and its
        ``segmentation`` where it has the form of one. Without ``annotations`` if the file has none.

    Raises:
        DataError: a file is missing, the annotation file is not COCO's format or contradicts itself, or has bad boxes.
    """
    if bad_boxes is not None:
        check_policy(bad_boxes)
    source = source or f"Annotation file {annotation_file}"
    with collector_off():
        file = read_annotation_file(annotation_file)
        for warning in file.warnings:
            logging.getLogger(__name__).warning(warning)
        _check_images(file.path, str(image_folder), [image["file_name"] for image in file.images])
        records, boxes = _records(file, str(image_folder), _class_indices(file, name))
        if file.annotated:
            if bad_boxes is not None:
                check_object_boxes(records, boxes, bad_boxes, source)
            check_areas(file, source)
    return records


def load_unlabelled(annotation_file: str | os.PathLike, image_folder: str | os.PathLike) -> list[dict]:
    """Loads the images of a COCO-format file alone, whatever else is in it.

    Returns:
        As :func:`load_coco`, without ``annotations``; empty where the file names no image.

    Raises:
        DataError: a file is missing, or the section "images" is not COCO's format.
    """
    found, annotated = read_images(annotation_file)
    images = sorted(found, key=lambda image: id_order(image["id"]))
    folder = str(image_folder)
    if annotated:
        logging.getLogger(__name__).info("Annotation file %s: its annotations are not looked at.", annotation_file)
    _check_images(os.fspath(annotation_file), folder, [image["file_name"] for image in images])
    return [_record(image, folder) for image in images]


def _record(image: dict, folder: str) -> dict[str, Any]:
    file_name = os.path.join(folder, image["file_name"])
    return {"file_name": file_name, "height": image["height"], "width": image["width"], "image_id": image["id"]}


def _class_indices(file: AnnotationFile, name: str | None) -> dict[int, int] | None:
    """Category id -> 0, 1, ... in the order of the ids, which the metadata of the set learns."""
    if name is None:
        return None
    index_of_id = {id: index for index, id in enumerate(sorted(item["id"] for item in file.categories))}
    metadata = MetadataCatalog.get(name)
    try:
        metadata.set(thing_classes=list(file.names), thing_dataset_id_to_contiguous_id=index_of_id)
    except AssertionError as error:
        raise DataError(
            f"Annotation file {file.path} has the classes {', '.join(file.names)} (ids {first(index_of_id)}), but "
            f"{name} is known with {', '.join(metadata.thing_classes)}. Give the set its own name in DATASETS.REGISTER."
        ) from error
    return index_of_id


def _records(file: AnnotationFile, folder: str, index_of_id: dict[int, int] | None) -> tuple[list[dict], ObjectBoxes]:
    """The records, and the boxes of their objects. Written for a million objects: one pass over them for each step."""
    images = sorted(file.images, key=lambda image: id_order(image["id"]))
    objects = _objects(file.annotations, index_of_id)
    row_of_id = {image["id"]: row for row, image in enumerate(images)}
    rows = np.array([row_of_id[item["image_id"]] for item in file.annotations], dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = np.searchsorted(rows, np.arange(len(images) + 1))
    objects = [objects[number] for number in order.tolist()]
    records: list[dict] = []
    for image, start, end in zip(images, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        records.append(_record(image, folder))
        if file.annotated:
            records[-1]["annotations"] = objects[start:end]
    owner = np.stack([rows, np.arange(len(rows)) - starts[rows]], axis=1)
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)[rows]
    kept = ~file.crowds[order]
    return records, ObjectBoxes(owner[kept], file.boxes[order][kept], sizes[kept], BoxMode.XYWH_ABS)


def _objects(items: list[dict], index_of_id: dict[int, int] | None) -> list[dict[str, Any]]:
    """detectron2's form of annotations, in the same order."""
    categories = [item["category_id"] for item in items]
    classes = categories if index_of_id is None else [index_of_id[category] for category in categories]
    mode = BoxMode.XYWH_ABS
    objects: list[dict[str, Any]] = [
        {"iscrowd": i["iscrowd"], "bbox": i["bbox"], "category_id": k, "id": i["id"], "bbox_mode": mode}
        for i, k in zip(items, classes, strict=True)
    ]
    for item, result in zip(items, objects, strict=True):
        if PLACE in item:
            result[PLACE] = item[PLACE]
    for key, form in (("segmentation", usable_segmentation), ("keypoints", _centred)):
        for item, result in zip(items, objects, strict=True):
            if item.get(key):
                value = form(item[key])
                if value is not None:
                    result[key] = value
    return objects


def _centred(keypoints: Any) -> list[float] | None:
    """COCO's keypoints (x, y, visibility each) are indices of pixels; all else is measured from the pixels' corners."""
    if not isinstance(keypoints, list) or set(map(type, keypoints)) - {int, float}:
        return None
    return [value if number % 3 == 2 else value + 0.5 for number, value in enumerate(keypoints)]


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
        hint = " Its paths have Windows' backslashes: write them with /." if "\\" in missing[0] else ""
        raise DataError(
            f"Image folder {folder} lacks {len(missing)} of the {len(names)} images that {path} names: "
            f"{first(missing)}. Correct the folder in DATASETS.REGISTER, or put the images there.{hint}"
        )
