"""A training step of a detector of transformers: operators with this project's criterion, and with the library's loss.

    python benchmarks/transformers_step.py --json transformers_step.json

Forward and backward, counted on a CPU as ``launches.py`` counts: random weights, two images of 256x256 with seven
objects each, 300 queries, denoising. The library's step has its own loss and denoising group. Not the same work for
D-FINE: the library's loss leaves two of its layers out.
Keys of the JSON: for each configuration ``own`` and ``library``, each with ``forward`` and ``backward``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from detr_distill import build_detector
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.hugging_face import TransformersStudent

import torch
from common import random_inputs, write_result
from launches import Launches
from torch import Tensor

CONFIGURATIONS = ("rtdetr_v2_r18", "dfine_n")
SIZE = 256


def count(step: Callable[[], Tensor]) -> dict[str, int]:
    """Operators of a step that gives its loss, forward and backward."""
    with Launches() as forward:
        loss = step()
    with Launches() as backward:
        loss.backward()
    return {"forward": forward.by_operator.total(), "backward": backward.by_operator.total()}


def measure(name: str) -> dict[str, dict[str, int]]:
    """Both steps of a configuration of configs/transformers."""
    torch.manual_seed(0)
    overrides = {"MODEL.TRANSFORMERS.SIZE": (SIZE, SIZE)}
    detector = build_detector(f"configs/transformers/{name}.yaml", overrides=overrides)
    assert isinstance(detector, TransformersStudent)
    inputs = random_inputs([(SIZE, SIZE)] * 2, num_classes=80)
    truth = read_ground_truth(inputs, "cpu")
    labels = [
        {"class_labels": truth.labels[image, :objects], "boxes": truth.boxes[image, :objects]}
        for image, objects in enumerate(truth.counts)
    ]
    pixels = torch.stack([entry["image"] for entry in inputs]).float() / 255
    return {
        "own": count(lambda: sum(detector(inputs).values(), torch.zeros(()))),
        "library": count(lambda: detector.network.detector(pixels, labels=labels).loss),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measure(name) for name in CONFIGURATIONS}
    for name, steps in result.items():
        print(name, steps)
    write_result(arguments.json, result)


if __name__ == "__main__":
    main()
