"""Folders of data as people have them, with a picture or two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

BOX = {"xmin": 3, "ymin": 3, "xmax": 20, "ymax": 15}


def picture(file: Path, shade: int = 90) -> None:
    """A picture of 40x20 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (shade, shade, shade)).save(file)


def coco(folder: Path, annotations: str, images: str, names: Sequence[str] = ("a", "b")) -> Path:
    """A COCO file and its pictures, both named from a folder."""
    for number, name in enumerate(names):
        picture(folder / images / f"{name}.png", number)
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 20} for i, n in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 18, 13], "area": 234, "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    file = folder / annotations
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def voc(folder: Path, annotations: str = "Annotations", images: str = "JPEGImages", **lists: str) -> Path:
    """Pictures a and b with an object each, named after it, and lists of them."""
    for number, name in enumerate("ab"):
        picture(folder / images / f"{name}.jpg", number)
        box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in BOX.items())
        text = f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
        file = folder / annotations / f"{name}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for part, names in lists.items():
        file = folder / "ImageSets" / "Main" / f"{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names.split()))
    return folder


def yolo(folder: Path, description: str = "", parts: Sequence[str] = ("train", "val")) -> Path:
    """images/PART and labels/PART, and data.yaml where its text is given."""
    for number, part in enumerate(parts):
        picture(folder / "images" / part / "a.png", number)
        label = folder / "labels" / part / "a.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    if description:
        (folder / "data.yaml").write_text(description)
    return folder
