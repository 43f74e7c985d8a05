"""Time until a run knows that its data can be used: annotation file, image files, boxes; on a set of COCO's size.

    python benchmarks/start_checks.py --json benchmarks/results/start_checks.json

The set is made in a temporary folder: 118,000 images of 640x480 pixels (links to a few files) with 860,000 boxes. Times
are of one process without training. Keys of the JSON, with seconds by the clock and of the CPU: class_names (its class
list), read (annotation file alone), load (records of DATASETS.TRAIN, with every check but a look into the images),
digits (the same for digits_train and digits_val, 6,500 images, made beforehand); and megabytes, the size of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import build_digits
from detr_distill.data.annotations.file import read_annotation_file, read_class_names
from detr_distill.data.records import load_records

import cv2
import numpy as np
from common import write_result
from detectron2.config import CfgNode

WIDTH, HEIGHT, CLASSES = 640, 480, 80
_LINKS = 30_000  # to one file; file systems have a limit


def make_set(folder: Path, images: int, boxes: int) -> Path:
    """Writes image files and an annotation file without polygons; returns the latter's path."""
    generator = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir()
    names = [f"{number:012d}.jpg" for number in range(images)]
    data = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))[1].tobytes()
    for number, name in enumerate(names):
        if number % _LINKS == 0:
            first = pictures / name
            first.write_bytes(data)
        else:
            os.link(first, pictures / name)
    corners = generator.uniform([0, 0], [WIDTH - 200, HEIGHT - 200], (boxes, 2)).round(2).tolist()
    sides = generator.uniform(5, 200, (boxes, 2)).round(2).tolist()
    owners = generator.integers(1, images + 1, boxes).tolist()
    classes = generator.integers(1, CLASSES + 1, boxes).tolist()
    contents = {
        "images": [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": kind, "bbox": [*xy, *wh], "area": wh[0] * wh[1], "iscrowd": 0}
            for n, (image, kind, xy, wh) in enumerate(zip(owners, classes, corners, sides, strict=True), 1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(contents))
    return path


def config_of(path: Path) -> CfgNode:
    """A configuration that trains on the set."""
    cfg = build_config("", ["DATASETS.REGISTER", json.dumps([["coco_sized", str(path), str(path.parent / "images")]])])
    cfg.DATASETS.TRAIN = ("coco_sized",)
    return cfg


def digits_records() -> None:
    cfg = build_config("", [])
    cfg.DATASETS.TRAIN = ("digits_train",)
    load_records(cfg)
    load_records(cfg, test_name="digits_val")


def seconds(function: Callable[[], object]) -> dict[str, float]:
    """By the clock, and of the CPU: other work on the machine slows the first."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    return {"seconds": round(time.perf_counter() - start, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}


def argument_parser() -> argparse.ArgumentParser:
    """The program's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser


def measure(images: int, boxes: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        path = make_set(Path(name), images, boxes)
        result: dict = {"images": images, "boxes": boxes, "megabytes": round(path.stat().st_size / 1e6, 1)}
        cfg = config_of(path)
        result["class_names"] = seconds(lambda: read_class_names(path))
        result["read"] = seconds(lambda: read_annotation_file(path))
        result["load"] = seconds(lambda: load_records(cfg))
    for split in ("train", "val"):
        build_digits(split=split)
    result["digits"] = seconds(digits_records)
    return result


def main() -> None:
    arguments = argument_parser().parse_args()
    result = measure(arguments.images, arguments.boxes)
    if arguments.json:
        write_result(arguments.json, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
