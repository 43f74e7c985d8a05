"""Time of the checks before a run: a set of COCO's size made here, and the digits.

    python benchmarks/start_checks_images.py --json benchmarks/results/start_checks.json

118,287 image files (links to a few JPEG files) and 860,001 boxes, without polygons. Keys of the JSON: images and boxes
of each set, seconds of the first check and of the second, which finds the first in the cache, by the clock and of CPU.
The disk is warm in both: a first look into files on a cold one takes the disk's own time, of which 20 s at most are
spent on headers. A minute or two on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from detr_distill.data import prepare, register_datasets
from detr_distill.data.checks import check_set
from detr_distill.engine import build_config

import cv2
import numpy as np
from common import write_result
from rich.console import Console

SIZE = (640, 480)
LINKS = 30000  # to one file: file systems allow some ten thousand


def make_set(folder: Path, images: int, boxes: int) -> list[str]:
    """An entry of DATASETS.REGISTER."""
    pictures = folder / "images"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number in range(images):
        file = pictures / f"{number:012d}.jpg"
        if number % LINKS == 0:
            original = file
            cv2.imwrite(str(file), random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
        else:
            os.link(original, file)
    corners = random.uniform(0, 300, (boxes, 2)).round(2)
    sides = random.uniform(5, 150, (boxes, 2)).round(2)
    owner, kind = random.integers(0, images, boxes).tolist(), random.integers(1, 81, boxes).tolist()
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": SIZE[0], "height": SIZE[1]}
            for number in range(images)
        ],
        "annotations": [
            {"id": number, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, (i, k, box) in enumerate(zip(owner, kind, np.hstack([corners, sides]).tolist(), strict=True), 1)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 81)],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return ["large", str(file), str(pictures)]


def measure(names: list[str]) -> dict[str, float]:
    """Seconds of the first and of the second check of some registered sets together, by the clock and of the CPU."""
    cfg = build_config("", [])
    seconds = {}
    for turn in ("first", "second"):
        start, cpu = time.perf_counter(), time.process_time()
        for name in names:
            check_set(cfg, name, "DATASETS.TRAIN")
        seconds[turn] = round(time.perf_counter() - start, 2)
        seconds[f"{turn}_cpu"] = round(time.process_time() - cpu, 2)
    return seconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118287, help="of the set that is made")
    parser.add_argument("--boxes", type=int, default=860001, help="of the set that is made")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    console = Console()
    digits = ["digits_train", "digits_val"]
    for name in digits:
        prepare(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        register_datasets([make_set(Path(folder), arguments.images, arguments.boxes)])
        result = {
            "large": {"images": arguments.images, "boxes": arguments.boxes, **measure(["large"])},
            "digits": {"images": 6500, **measure(digits)},
        }
    for name, row in result.items():
        times = ", ".join(f"{turn} {row[turn]} s ({row[f'{turn}_cpu']} s of CPU)" for turn in ("first", "second"))
        console.print(f"{name}: {row['images']} images, {times}")
    if arguments.json:
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
