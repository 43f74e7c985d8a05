"""Time of a distilled training step against the plain student's step plus the plain teacher's forward, if it has one.

    python benchmarks/step_time.py --method d3etr --json step_time.json

A step is forward, backward and the update by the recipe's optimizer, at learning rate 0 so that all rounds see the
same weights. All are timed in turn, round after round, in one process, so that other work on the machine meets all
alike; the medians are reported. Weights are random, but for zeros in residual branches and in the region proposal
network: maps from a deep random network are so large that hardly a region would be left, and the plain step far too
cheap; now the head reads as many regions, of the same sizes, from any maps. Keys of the JSON: ratio (distilled /
(plain + teacher)), plain_seconds, teacher_seconds, distilled_seconds, peak_memory_ratio (distilled / plain, of the
bytes that one step's tensors take at most beyond the weights), regions (that the plain student's box head reads, an
image), on CUDA gpu (of each model kernels, copies and gpu_busy_seconds), with --phases phase_seconds, and the setting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.distill import DistillDetector
from detr_distill.distill.students.base import StudentStep
from detr_distill.distill.teachers.frozen import FrozenDetector
from detr_distill.engine.precision import Precision
from detr_distill.engine.solver import build_optimizer

import torch
from common import ROOT, device_name, peak_bytes, random_inputs, read_size, time_in_turn, training_step, write_result
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.utils.events import EventStorage
from profiling import gpu_work, time_phases
from torch import nn


@dataclass(frozen=True)
class Method:
    """Defaults: a configuration, the side of its square images in pixels, threads (0: torch's own), timed rounds."""

    config: str
    size: int
    threads: int = 0
    rounds: int = 7


METHODS = {
    "d3etr": Method("d3etr/conditional_r101_r50", 640),
    "detrdistill": Method("detrdistill/conditional_r101_r50", 640),
    "detrdistill_deformable": Method("detrdistill/deformable_r101_r50", 640),
    "lgd_retinanet": Method("lgd/retinanet_r50", 256, threads=1, rounds=15),
    "lgd_retinanet_light": Method("lgd/retinanet_r50_light", 256, threads=1, rounds=15),
    "lgd_faster_rcnn": Method("lgd/faster_rcnn_r50", 256, threads=1),
    "lgd_faster_rcnn_light": Method("lgd/faster_rcnn_r50_light", 256, threads=1),
}


def build(
    config: str, device: str, folder: Path, amp: str | None = None
) -> tuple[DistillDetector, nn.Module, FrozenDetector | None, CfgNode]:
    """The distilling model, its plain student, its plain teacher or None, random weights; the configuration."""
    teacher_model = None
    mixed = [] if amp is None else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", amp]
    cfg = build_config(str(ROOT / f"configs/{config}.yaml"), ["MODEL.DEVICE", device, *mixed])
    cfg.MODEL.WEIGHTS = ""
    teacher = cfg.MODEL.DISTILL.TEACHER
    if teacher.CONFIG_FILE:
        teacher_cfg = build_config(str(ROOT / teacher.CONFIG_FILE), ["MODEL.DEVICE", device])
        weights = folder / "teacher.pth"
        teacher_model = build_model(teacher_cfg)
        torch.save({"model": teacher_model.state_dict()}, weights)
        teacher.WEIGHTS = str(weights)
    distilled = build_model(cfg).train()
    cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE
    if teacher_model is not None:
        teacher_model = FrozenDetector(detector=teacher_model, classes=distilled.teacher.classes)
    plain = build_model(cfg).train()
    for model in (distilled, plain, teacher_model or plain):
        _keep_maps_small(model)
    return distilled, plain, teacher_model, cfg


def _keep_maps_small(model: nn.Module) -> None:
    """Zeros in residual branches and in the region proposal network, see above."""
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            nn.init.zeros_(module.conv3.norm.weight)
        if isinstance(module, StandardRPNHead):
            nn.init.zeros_(module.anchor_deltas.weight)
            nn.init.zeros_(module.objectness_logits.weight)


def argument_parser() -> argparse.ArgumentParser:
    """The program's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--rounds", type=int, help="timed rounds, after one to warm up; default: the method's")
    parser.add_argument("--size", type=read_size, help="HEIGHTxWIDTH of the images, or a square's side; pixels")
    parser.add_argument("--threads", type=int, help="default: the method's")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--amp", choices=("none", "bfloat16", "float16"), default="none", help="mixed precision")
    parser.add_argument("--phases", action="store_true", help="time the distilled step's phases too, in rounds apart")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def measure(
    config: str, inputs: list[dict], rounds: int, device: str, amp: str | None = None, phases: bool = False
) -> dict:
    """Everything in the result but the setting; ``amp`` as in :class:`Precision`."""
    precision = Precision(device, amp)
    with tempfile.TemporaryDirectory() as folder:
        distilled, plain, teacher, cfg = build(config, device, Path(folder), amp)
    cfg.SOLVER.BASE_LR = 0.0
    models = {"plain": plain, "distilled": distilled}
    steps: dict[str, Callable[..., object]] = {
        name: partial(training_step, model, inputs, build_optimizer(cfg, model), precision)
        for name, model in models.items()
    }
    if teacher is not None:
        steps["teacher"] = precision.autocast()(partial(teacher, StudentStep(inputs), frozenset()))
    extra: dict[str, dict] = {}
    with EventStorage() as storage:  # detectron2's own heads write to it
        seconds = time_in_turn(steps, rounds, device)
        peaks = {
            name: peak_bytes(partial(training_step, model, inputs, precision=precision), device)
            for name, model in models.items()
        }
        if device == "cuda":
            extra["gpu"] = {name: gpu_work(step) for name, step in steps.items()}
        if phases:
            extra["phase_seconds"] = time_phases(steps["distilled"], distilled, rounds, device)
        steps["plain"]()
    regions = [value for name, (value, _) in storage.latest().items() if name.startswith("roi_head/num_")]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio": medians["distilled"] / (medians["plain"] + medians.get("teacher", 0.0)),
        **{f"{name}_seconds": value for name, value in medians.items()},
        "peak_memory_ratio": peaks["distilled"] / peaks["plain"],
        "peak_memory_bytes": peaks,
        "all_seconds": seconds,
        "regions": sum(regions),
        "captures": sorted(distilled.capture),
        **extra,
    }


def main() -> None:
    arguments = argument_parser().parse_args()
    method = METHODS[arguments.method]
    size, threads = arguments.size or (method.size, method.size), arguments.threads or method.threads
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    inputs = random_inputs([size] * arguments.batch, num_classes=80)
    amp = None if arguments.amp == "none" else arguments.amp
    rounds = arguments.rounds or method.rounds
    result = {
        "method": arguments.method,
        **measure(method.config, inputs, rounds, arguments.device, amp, arguments.phases),
        "size": size,
        "batch": arguments.batch,
        "amp": arguments.amp,
        "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
    }
    write_result(arguments.json, result)
    print(json.dumps({key: value for key, value in result.items() if key != "all_seconds"}, indent=2))


if __name__ == "__main__":
    main()
