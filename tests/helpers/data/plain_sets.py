"""COCO-format sets of grey pictures, made in a folder of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("red", "green", "blue")


def write_set(
    folder: Path,
    name: str,
    *,
    images: int = 4,
    objects: int = 2,
    size: tuple[int, int] = (32, 24),
    classes: tuple[str, ...] = CLASSES,
    change: Callable[[dict], object] | None = None,
) -> list[str]:
    """An entry of DATASETS.REGISTER: pictures of (width, height) pixels, with as many objects of the classes in turn.

    ``change`` edits the content of the annotation file before it is written.
    """
    pictures = folder / name
    pictures.mkdir(parents=True)
    width, height = size
    content: dict = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": width, "height": height} for i in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": i, "name": label} for i, label in enumerate(classes, start=1)],
    }
    for number in range(images * objects):
        content["annotations"].append(
            {
                "id": number + 1, "image_id": number // objects + 1, "category_id": number % len(classes) + 1,
                "bbox": [2, 3, 10, 8], "area": 80, "iscrowd": 0,
            }
        )  # fmt: skip
    for image in content["images"]:
        cv2.imwrite(str(pictures / image["file_name"]), np.full((height, width, 3), 90, np.uint8))
    if change is not None:
        change(content)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return [name, str(file), str(pictures)]
