"""Time of a distilled training step against the plain student's step plus the teacher's forward.

    python benchmarks/step_time.py --method d3etr --json step_time.json

The three are timed in turn, round after round, in one process, so that other work on the machine meets all alike; the
medians are reported. Weights are random: a step costs the same whatever they are. Keys of the JSON: ratio
(distilled / (plain + teacher)), plain_seconds, teacher_seconds, distilled_seconds, peak_memory_ratio (distilled /
plain, of the bytes that one step's tensors take at most beyond the weights), and the setting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from detr_distill.distill.students import StudentStep
from detr_distill.engine.configuration import build_config

import torch
from common import device_name, peak_bytes, random_inputs, time_in_turn, training_step
from detectron2.modeling import build_model

ROOT = Path(__file__).parent.parent
METHODS = {"d3etr": "configs/d3etr/conditional_r101_r50.yaml"}


def build(method: str, device: str, folder: Path):
    """The distilling model of a method, and its plain student, with random weights."""
    config = str(ROOT / METHODS[method])
    cfg = build_config(config, ["MODEL.DEVICE", device])
    teacher_cfg = build_config(str(ROOT / cfg.MODEL.DISTILL.TEACHER.CONFIG_FILE), ["MODEL.DEVICE", device])
    weights = folder / "teacher.pth"
    torch.save({"model": build_model(teacher_cfg).state_dict()}, weights)
    cfg.MODEL.DISTILL.TEACHER.WEIGHTS = str(weights)
    distilled = build_model(cfg).train()
    cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE
    return distilled, build_model(cfg).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--size", type=int, default=640, help="side of the square images, pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        distilled, plain = build(arguments.method, arguments.device, Path(folder))
    inputs = random_inputs([(arguments.size, arguments.size)] * arguments.batch, num_classes=80)
    capture = distilled.capture
    steps = {
        "plain": lambda: training_step(plain, inputs),
        "teacher": lambda: distilled.teacher(StudentStep(inputs), frozenset()),
        "distilled": lambda: training_step(distilled, inputs),
    }
    seconds = time_in_turn(steps, arguments.rounds, arguments.device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(steps[name], arguments.device) for name in ("plain", "distilled")}
    result = {
        "method": arguments.method,
        "ratio": medians["distilled"] / (medians["plain"] + medians["teacher"]),
        **{f"{name}_seconds": value for name, value in medians.items()},
        "peak_memory_ratio": peaks["distilled"] / peaks["plain"],
        "peak_memory_bytes": peaks,
        "all_seconds": seconds,
        "captures": sorted(capture),
        "size": arguments.size,
        "batch": arguments.batch,
        "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2))
    print(json.dumps({key: value for key, value in result.items() if key != "all_seconds"}, indent=2))


if __name__ == "__main__":
    main()
