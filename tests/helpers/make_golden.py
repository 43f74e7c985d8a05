"""Stores the losses of the small configurations on a fixed batch; test_golden.py compares them with the code's.

    python tests/make_golden.py [NAME ...]

Run it only after a change that is meant to move the losses, and say in the commit why they moved. A case whose values
depend on the kind of CPU is refused: its random networks are to be drawn otherwise, see golden_cases.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from detr_distill.detr.decoders import AdaMixerDecoder
from detr_distill.distill.teachers import frozen
from detr_distill.distill.teachers.label_encoder import label_map
from detr_distill.engine import build_config

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from helpers.builders import ROOT, SPREAD, make_inputs, randomise
from helpers.golden_cases import CASES, DIGITS

NO_DOWNLOAD = ["MODEL.TIMM.PRETRAINED", "", "MODEL.TORCHVISION.PRETRAINED", ""]
GOLDEN = ROOT / "tests" / "golden"
COMMAND = ROOT / "tests" / "make_golden.py"
# One wide and one high, so that both are padded.
SIZES = ((64, 96), (96, 64))
# They let torch and MKL compute as older CPUs do.
OTHER_CPUS = ({"ATEN_CPU_CAPABILITY": "default"}, {"MKL_CBWR": "COMPATIBLE"})

Losses = dict[str, float]


@contextlib.contextmanager
def teachers_without_weights():
    """Lets frozen teachers keep their random start, so that no trained weights are needed."""
    with (
        mock.patch.object(frozen, "load_strict", return_value=None),
        mock.patch.object(frozen, "find_weights", return_value=""),
        mock.patch.object(label_map, "load_part", return_value=None),
        mock.patch.object(label_map, "find_weights", return_value="step1"),
    ):
        yield


def build_untrained(config_file: Path, overrides: tuple[str, ...] = ()) -> tuple[CfgNode, torch.nn.Module]:
    """A configuration and its model in training mode, on the CPU, random from seed 0."""
    cfg = build_config(str(config_file), ["MODEL.DEVICE", "cpu", *NO_DOWNLOAD, *overrides])
    torch.manual_seed(0)
    with teachers_without_weights():
        return cfg, build_model(cfg).train()


@torch.no_grad()
def draw(module: torch.nn.Module, seed: int, spread: float = SPREAD) -> None:
    """``randomise`` for any detector, with numbers for which rounding stays rounding.

    The many convolutions of detectron2's own would make ever larger maps, and boxes that overlap nothing: there each is
    scaled so that its output is about as large as its input. AdaMixer's sizes are powers of two of what its heads give,
    and the next stage samples by them: its heads and offsets are a third as large.
    """
    randomise(module, seed, spread)
    if isinstance(module, DenseDetector):
        for weight in (values for values in module.parameters() if values.dim() == 4):
            weight /= weight.flatten(1).norm(dim=1).mean()
    for decoder in (part for part in module.modules() if isinstance(part, AdaMixerDecoder)):
        for name, values in decoder.named_parameters():
            if "box_head" in name or "sampling_offsets" in name:
                values /= 3


def golden_losses(name: str) -> Losses:
    """Losses of one training step of a case.

    Every parameter is drawn anew from a seed of its own: the values depend neither on the shipped teacher nor on how a
    layer is initialised.
    """
    case = CASES[name]
    overrides = [text for key, value in case.keys.items() for text in (f"MODEL.DISTILL.{key}", str(value))]
    cfg, model = build_untrained(DIGITS / f"{case.config}.yaml", tuple(overrides))
    student = getattr(model, "student", model)
    draw(student, seed=1, spread=case.spread)
    if student is not model:
        teacher = model.teacher.detector or model.teacher  # an encoder of labels has no detector
        draw(teacher, seed=2, spread=case.spread)
        if case.position_gain != 1:
            teacher.queries.position.weight.data *= case.position_gain
        randomise(model.matchers, seed=3)
        randomise(model.losses, seed=4)
    torch.manual_seed(0)
    with EventStorage():  # detectron2's own heads write to it
        losses = model(make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES))
    return {key: value.item() for key, value in sorted(losses.items())}


def difference(first: Losses, second: Losses) -> float:
    """The largest relative difference between two steps' losses."""
    return max(abs(first[key] - second[key]) / max(abs(first[key]), 1e-12) for key in first | second)


def refuse_dependence_on_the_cpu(values: dict[str, Losses]) -> None:
    """Computes the cases as other CPUs would.

    Raises:
        SystemExit: the values of a case differ by more than its limit.
    """
    moved = []
    for settings in OTHER_CPUS:
        command = [sys.executable, str(COMMAND), "--print", *values]
        result = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True, text=True)
        for name, others in json.loads(result.stdout).items():
            found = difference(values[name], others)
            print(f"{name}: {found:.1e} with {settings}")
            if not found <= CASES[name].limit:
                moved.append(f"{name} by {found:.1e} with {settings}, and {CASES[name].limit} is the limit")
    if moved:
        raise SystemExit("Nothing is written, these depend on the kind of CPU:\n" + "\n".join(moved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"those to write; none: all of {', '.join(CASES)}")
    parser.add_argument("--print", action="store_true", help="print the losses as JSON, and write nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    values = {name: golden_losses(name) for name in arguments.names or CASES}
    if arguments.print:
        print(json.dumps(values))
        return
    refuse_dependence_on_the_cpu(values)
    GOLDEN.mkdir(exist_ok=True)
    for name, losses in values.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(losses, indent=2) + "\n")
        print(GOLDEN / f"{name}.json")
