"""The exported detector in onnxruntime against PyTorch, on a CPU: time of a batch, and how far the two are apart.

    python benchmarks/exported.py --json benchmarks/results/exported.json

Small detectors of the digits, random weights. PyTorch is ``DetrDetector.forward`` in eval mode and without gradients,
with preparation and detections, as a program would call it. Keys of the JSON, for each configuration: ``difference``
(largest, of scores, or of boxes in the image's sides) and for each size ``ratio`` (median of onnxruntime / of PyTorch)
and ``median_seconds``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.deployment.checking import example
from detr_distill.deployment.graphs import graph_of
from detr_distill.deployment.writing import write_onnx

import onnxruntime
import torch
from common import ROOT, time_in_turn, write_result
from detectron2.modeling import build_model
from torch import nn

CONFIGS = ("detr", "conditional", "dab", "deformable_plain", "deformable", "dino", "adamixer", "anchor", "smca")
SIZES = ((1, 96, 96), (8, 96, 96), (1, 320, 320))  # images, height, width
SPREAD = 0.05  # of random weights around 0: such a network rounds as a trained one does


def random_detector(name: str) -> nn.Module:
    """The digits student of a name, with weights of which none is 0."""
    cfg = build_config(str(ROOT / f"configs/digits/{name}_student.yaml"), ["MODEL.DEVICE", "cpu"])
    detector = build_model(cfg).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in detector.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * SPREAD
    return detector


def forms(
    detector: nn.Module, session: onnxruntime.InferenceSession, size: tuple[int, int, int]
) -> dict[str, Callable]:
    """Both as functions without arguments, on the same images."""
    images, sizes = example(*size)
    inputs = [{"image": image, "height": size[1], "width": size[2]} for image in images.flip(1)]
    values = {"images": images.numpy(), "sizes": sizes.numpy()}
    return {"pytorch": lambda: detector(inputs), "onnxruntime": lambda: session.run(None, values)}


def measure(name: str, rounds: int, threads: int) -> dict:
    """The figures of one configuration."""
    detector = random_detector(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "detector.onnx"
        difference = write_onnx(graph_of(detector, "BGR"), file, [str(digit) for digit in range(10)], (96, 128))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        result: dict = {"difference": difference, "bytes": file.stat().st_size}
        for size in SIZES:
            seconds = time_in_turn(forms(detector, session, size), rounds, "cpu")
            medians = {form: statistics.median(values) for form, values in seconds.items()}
            ratio = medians["onnxruntime"] / medians["pytorch"]
            result["x".join(map(str, size))] = {"ratio": ratio, "median_seconds": medians}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {}
    for name in arguments.configs:
        rows[name] = measure(name, arguments.rounds, arguments.threads)
        ratios = ", ".join(
            f"{key} {value['ratio']:.2f}" for key, value in rows[name].items() if isinstance(value, dict)
        )
        print(f"{name}: {ratios}; differs by {rows[name]['difference']:.0e}", flush=True)
        write_result(arguments.json, {"threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
