"""Small copies of the photo sets BCCD and cards: every image at the size that is trained on, COCO annotations.

Reading a full photo takes longer than a small detector's step on it. BCCD's own parts are kept; cards' training part
gives a fifth away as ``val``, by a fixed seed, to choose settings on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from detr_distill.data.formats.voc import VocRules, read_voc

import cv2
import numpy as np

SHORT_SIDE = 192
PARTS = ("train", "val", "test")
_QUALITY = 88
_RULES = VocRules(first_pixel=0)  # boxes of both begin at 0


def prepare(
    data: Path, folder: Path, names: Iterable[str] = ("bccd", "cards")
) -> dict[str, list[tuple[str, str, str]]]:
    """Makes what is missing of the copies.

    Args:
        data: holds ``bccd`` and ``cards``. folder: where the copies go. names: of the sets.

    Returns:
        For each set ``DATASETS.REGISTER``'s entries of its parts, ``<set>_train``, ``<set>_val``, ``<set>_test``.
    """
    for name in names:
        if not (folder / name / "test.json").is_file():
            _copy(folder / name, _READERS[name](data / name))
    return {
        name: [(f"{name}_{part}", str(folder / name / f"{part}.json"), str(folder / name)) for part in PARTS]
        for name in names
    }


def _read_bccd(source: Path) -> dict[str, tuple[Path, dict]]:
    names, images = ("Platelets", "RBC", "WBC"), source / "JPEGImages"
    rules = VocRules(_RULES.first_pixel, names=names)
    lists = {part: source / "ImageSets" / "Main" / f"{part}.txt" for part in PARTS}
    return {part: (images, read_voc(str(file), str(images), rules)) for part, file in lists.items()}


def _read_cards(source: Path) -> dict[str, tuple[Path, dict]]:
    folders = {part: source / "images" / part for part in ("train", "test")}
    found = {part: (folder, read_voc(str(folder), str(folder), _RULES)) for part, folder in folders.items()}
    folder, content = found["train"]
    order = random.Random(0).sample(range(len(content["images"])), len(content["images"]))
    aside = {content["images"][index]["id"] for index in order[: len(order) // 5]}
    return {
        "train": (folder, _only(content, lambda image: image not in aside)),
        "val": (folder, _only(content, lambda image: image in aside)),
        "test": found["test"],
    }


_READERS = {"bccd": _read_bccd, "cards": _read_cards}


def _only(content: dict, wanted: Callable[[int], bool]) -> dict:
    images = [image for image in content["images"] if wanted(image["id"])]
    return {**content, "images": images, "annotations": [a for a in content["annotations"] if wanted(a["image_id"])]}


def _copy(folder: Path, parts: dict[str, tuple[Path, dict]]) -> None:
    """Writes the images of all parts and a COCO file for each; the last file says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (source, content) in parts.items():
        scales = {}
        for image in content["images"]:
            pixels = np.asarray(cv2.imread(str(source / image["file_name"])))
            scale = SHORT_SIDE / min(pixels.shape[:2])
            height, width = (round(side * scale) for side in pixels.shape[:2])
            scales[image["id"]] = (width / pixels.shape[1], height / pixels.shape[0])
            image.update(file_name=f"{part}_{image['id']}.jpg", width=width, height=height)
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / image["file_name"]), small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        annotations = list(_scaled(content["annotations"], scales))
        (folder / f"{part}.json").write_text(json.dumps({**content, "annotations": annotations}))


def _scaled(annotations: Iterable[dict], scales: dict[int, tuple[float, float]]) -> Iterable[dict]:
    """Annotations in the copies' pixels; boxes without area, of which BCCD has two, are left out."""
    for item in annotations:
        across, down = scales[item["image_id"]]
        x, y, width, height = item["bbox"]
        if width > 0 and height > 0:
            box = [x * across, y * down, width * across, height * down]
            yield {**item, "bbox": box, "area": box[2] * box[3]}
