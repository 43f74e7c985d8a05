"""Random maps of a student and a teacher, and running a loss on them."""

from __future__ import annotations

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.map_pairs import MapPair
from detr_distill.distill.students.base import StudentOutput, StudentStep

import torch
from helpers.builders import make_inputs
from torch import nn


def map_pairs(
    names: str = "ab", teacher_names: str = "xy", channels: int = 3, teacher_channels: int = 3
) -> tuple[MapPair, ...]:
    """The student's map of each letter with the teacher's of the other word's."""
    return tuple(
        MapPair(name, other, channels, teacher_channels) for name, other in zip(names, teacher_names, strict=True)
    )


def random_maps(names: str, seed: int, channels: int = 3, sizes=((4, 4), (2, 2))) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, channels, *size, generator=generator) for name, size in zip(names, sizes, strict=True)}


OWN, TARGET = random_maps("ab", 0), random_maps("xy", 1)


def make_step(counts=(1, 0), device="cpu") -> StudentStep:
    """Two images of 32x32; where the first has an object, it is its upper left quarter."""
    inputs = make_inputs(sizes=((32, 32), (32, 32)), counts=counts)
    if counts[0]:
        inputs[0]["instances"].gt_boxes.tensor[:] = torch.tensor([0.0, 0, 15, 15])
    return StudentStep(inputs, {}, (32, 32), ground_truth=read_ground_truth(inputs, device))


def run(loss: nn.Module, own=OWN, target=TARGET, counts=(1, 0)) -> dict[str, torch.Tensor]:
    return loss(StudentOutput(own, step=make_step(counts)), Knowledge(features=target), [])


def levels():
    return [(OWN["a"], TARGET["x"]), (OWN["b"], TARGET["y"])]
