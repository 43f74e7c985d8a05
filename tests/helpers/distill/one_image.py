"""Outputs, pairs and attention maps of one layer and one image, and running a loss on them."""

from __future__ import annotations

import math

from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.match import Match
from detr_distill.distill.students.base import StudentOutput
from detr_distill.structures import DecoderOutput, Memory, Pairs

import torch

SAME = match_classes(None, None, 2, 2)
BOX = [[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]


def output(logits, boxes, activation="sigmoid", **maps):
    """One layer, one image."""
    logits = torch.tensor(logits, dtype=torch.float32)[None, None].requires_grad_()
    boxes = torch.tensor(boxes, dtype=torch.float32)[None, None]
    return DecoderOutput(logits, boxes, torch.zeros(1, 1, logits.shape[2], 1), activation, **maps)


def match(query, target, weight=None):
    index = [torch.tensor(values)[None, None] for values in (query, target)]
    weight = torch.ones(1, 1, len(query)) if weight is None else torch.tensor(weight)[None, None]
    return Match("adaptive", "own", (0,), Pairs(*index, weight))


def memory(*shape):
    """One level of (height, width)."""
    tokens = torch.zeros(1, math.prod(shape), 1)
    return Memory(tokens, torch.zeros_like(tokens), None, [shape])


def run(loss, student, teacher, pairs, student_memory=None, teacher_memory=None):
    known = Knowledge(output=teacher, memory=teacher_memory)
    losses = loss(StudentOutput({}, {"own": student}, student_memory), known, [pairs])
    return {name.removeprefix("loss_distill_").removesuffix("_adaptive"): value for name, value in losses.items()}


def logit(p):
    return math.log(p / (1 - p))


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
