"""Time of the checks before a run: a set of COCO's size that is made here, and the digits.

    python benchmarks/start_checks.py --json benchmarks/results/start_checks.json

118,287 image files (links to a few JPEG files) and 860,001 boxes, without polygons. Keys of the JSON: of each set its
images and boxes, and seconds by the clock and of the CPU (``_cpu``): read, the annotation file alone; first, the whole
check; second, the check again, which finds the first in the cache. The disk is warm: a first look into files on a cold
one takes the disk's own time, of which 20 s at most are spent on headers. A minute or two on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from detr_distill.data import prepare, register_datasets
from detr_distill.data.annotations.file import read_annotation_file
from detr_distill.data.checks import check_set
from detr_distill.data.digits import SPLITS
from detr_distill.engine import build_config

import cv2
import numpy as np
from common import write_result
from rich.console import Console

WIDTH, HEIGHT, CLASSES = 640, 480, 80
LINKS = 30_000  # to one file: file systems allow some ten thousand


def make_set(folder: Path, images: int, boxes: int) -> list[str]:
    """Writes the set; returns its entry of DATASETS.REGISTER."""
    random = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir()
    names = [f"{number:012d}.jpg" for number in range(images)]
    for number, name in enumerate(names):
        if number % LINKS == 0:
            original = pictures / name
            cv2.imwrite(str(original), random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        else:
            os.link(original, pictures / name)
    corners, sides = random.uniform(0, 300, (boxes, 2)).round(2), random.uniform(5, 150, (boxes, 2)).round(2)
    owners, kinds = random.integers(1, images + 1, boxes).tolist(), random.integers(1, CLASSES + 1, boxes).tolist()
    objects = zip(owners, kinds, np.hstack([corners, sides]).tolist(), strict=True)
    contents = {
        "images": [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, kind, box) in enumerate(objects, 1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(contents))
    return ["large", str(file), str(pictures)]


def seconds(name: str, function: Callable[[], object]) -> dict[str, float]:
    """By the clock, and of the CPU: other work on the machine slows the first."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    clock, busy = time.perf_counter() - start, time.process_time() - cpu
    return {name: round(clock, 2), f"{name}_cpu": round(busy, 2)}


def check(names: list[str]) -> None:
    """The whole check of some registered sets."""
    cfg = build_config("", [])
    for name in names:
        check_set(cfg, name, "DATASETS.TRAIN")


def measure(images: int, boxes: int) -> dict[str, dict]:
    """The result, by set."""
    digits = [f"digits_{split}" for split in SPLITS]
    for name in digits:
        prepare(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        entry = make_set(Path(folder), images, boxes)
        register_datasets([entry])
        return {
            "large": {
                "images": images,
                "boxes": boxes,
                "megabytes": round(os.path.getsize(entry[1]) / 1e6, 1),
                **seconds("read", lambda: read_annotation_file(entry[1])),
                **seconds("first", lambda: check(["large"])),
                **seconds("second", lambda: check(["large"])),
            },
            "digits": {
                "images": sum(SPLITS.values()),
                **seconds("first", lambda: check(digits)),
                **seconds("second", lambda: check(digits)),
            },
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287, help="of the set that is made")
    parser.add_argument("--boxes", type=int, default=860_001, help="of the set that is made")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    result = measure(arguments.images, arguments.boxes)
    for name, row in result.items():
        times = (f"{key} {row[key]} s ({row[f'{key}_cpu']} s of CPU)" for key in row if f"{key}_cpu" in row)
        Console().print(f"{name}: {row['images']} images, {', '.join(times)}")
    if arguments.json:
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
