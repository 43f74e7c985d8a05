"""Small sets of pictures on disk."""

from __future__ import annotations

import json
from pathlib import Path

from detr_distill.data import register_datasets

import cv2
import numpy as np

COUNT, SIZE = 10, 32


def write_set(folder: Path, name: str, first: int, count: int = COUNT) -> list[str]:
    """A registered set of noisy pictures, each of its own content, with an object each; its entry of REGISTER."""
    images = folder / name
    images.mkdir(parents=True)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for n in range(first, first + count):
        picture = np.random.default_rng(n).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{n}.png"), picture)
        content["images"].append({"id": n, "file_name": f"{n}.png", "width": SIZE, "height": SIZE})
        content["annotations"].append(
            {"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 9, 9], "area": 81, "iscrowd": 0}
        )
    (folder / f"{name}.json").write_text(json.dumps(content))
    entry = [f"{name}_{folder.name}", str(folder / f"{name}.json"), str(images)]
    register_datasets([entry])
    return entry
