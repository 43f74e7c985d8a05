"""What the training loader gives: images a second and core, decoded, augmented and ready for a step.

    python benchmarks/loader.py --json benchmarks/results/loader.json

The photographs are scikit-learn's two (640x427, JPEG), the settings those of a recipe: DETR's random sizes and crops.
CPU time is counted, so that other work on the machine changes little. A loader of W processes gives W times as much
until the cores, the disk or the transfer to the GPU are at their limit. Keys of the JSON: commit, recipe, images,
cpu_seconds (of one image, median of the rounds), images_a_second, and the mean size that images come out with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import DetrDatasetMapper

import numpy as np
import torch
from common import ROOT, write_result
from detectron2.structures import BoxMode

RECIPE = "configs/d3etr/conditional_r101_r50.yaml"
OBJECTS = 7  # COCO's mean


def photo_records() -> list[dict]:
    """detectron2 records of scikit-learn's photographs, with random boxes."""
    from PIL import Image
    from sklearn import datasets

    generator = np.random.default_rng(0)
    records: list[dict] = []
    for file in sorted((Path(datasets.__file__).parent / "images").glob("*.jpg")):
        with Image.open(file) as image:
            width, height = image.size
        corners = generator.random((OBJECTS, 2)) * 0.6 * (width, height)
        extents = (generator.random((OBJECTS, 2)) * 0.35 + 0.05) * (width, height)
        objects = [
            {"bbox": [*corner, *extent], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
            for corner, extent in zip(corners.tolist(), extents.tolist(), strict=True)
        ]
        records.append(
            {"file_name": str(file), "image_id": len(records), "height": height, "width": width, "annotations": objects}
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--images", type=int, default=20, help="of a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mapper = DetrDatasetMapper(build_config(str(ROOT / RECIPE), ["MODEL.DEVICE", "cpu"]), is_train=True)
    records, seconds, sizes = photo_records(), [], []
    for round_number in range(options.rounds + 1):
        start = time.process_time()
        for number in range(options.images):
            entry = mapper(records[number % len(records)])
            sizes.append(tuple(entry["image"].shape[-2:]))
        if round_number:
            seconds.append((time.process_time() - start) / options.images)
    median = statistics.median(seconds)
    result = {
        "recipe": RECIPE,
        "images": options.images,
        "cpu_seconds": median,
        "images_a_second": 1 / median,
        "mean_height_width": [statistics.mean(side) for side in zip(*sizes, strict=True)],
        "all_seconds": seconds,
    }
    write_result(options.json, result)
    print(f"{result['images_a_second']:.1f} images a second and core, {median * 1000:.1f} ms each")


if __name__ == "__main__":
    main()
