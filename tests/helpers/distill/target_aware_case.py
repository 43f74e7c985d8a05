"""A teacher's queries and cells whose qualities, masks and losses are known by hand."""

from __future__ import annotations

import math

from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.target_aware import TargetAwareLoss
from detr_distill.distill.students.base import StudentOutput
from detr_distill.structures import DecoderOutput, GroundTruth, Memory, Pairs

import torch

NAME, MASK_NAME = "loss_distill_target_aware", "loss_target_mask"
GRID = [(2, 2)]
# Query 1 has the object: class score 0.64, and a box that covers its right half.
SCORES = [[0.9, 0.1], [0.2, 0.64], [0.5, 0.5]]
BOXES = [[0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 0.25, 0.5], [0.9, 0.9, 0.1, 0.1]]
OBJECT = [0.375, 0.25, 0.5, 0.5]
QUALITY = math.sqrt(0.64 * 0.5)
# Cells of a 2x2 map, row by row, and a hidden state that gives them the logits 0, ln 3, -ln 3 and 0 at width 4.
CELLS = [[0.0, 1.0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0.0, 0, 2, 0]]
HIDDEN = [2 * math.log(3), 0.0, 0, 0]
MASK = [0.5, 0.75, 0.25, 0.5]
WEIGHTS = [QUALITY * m * m for m in MASK]


def teacher_output(activation="sigmoid"):
    """Two layers of one image and three queries; the first layer must not be read."""
    scores = torch.tensor(SCORES)
    nothing = 1 - scores.sum(1, keepdim=True)
    logits = scores.logit() if activation == "sigmoid" else torch.cat([scores, nothing], 1).log()
    hidden = torch.tensor([[9.0] * 4, HIDDEN, [7.0] * 4])
    layers = [torch.stack([torch.full_like(x, 0.5), x])[:, None] for x in (logits, torch.tensor(BOXES), hidden)]
    return DecoderOutput(*layers, activation)


def assigned(query=1, target=0):
    """One pair of the last layer and one of padding, which must not count."""
    rows = torch.tensor([[[0, 2]], [[query, 2]]])
    goals = torch.tensor([[[1, 1]], [[target, 1]]])
    return Pairs(rows, goals, torch.tensor([[[1.0, 0]], [[1.0, 0]]]))


def labelled(label=1):
    boxes = torch.tensor([[OBJECT, [0.0, 0, 0, 0]]])
    return GroundTruth(torch.tensor([[label, 0]]), boxes, torch.tensor([[True, False]]), [1])


def memory(tokens, shapes=GRID, mask=None):
    return Memory(tokens, torch.zeros_like(tokens), mask, shapes)


def knowledge(tokens=None, shapes=GRID, mask=None, ground_truth=None, **changes):
    tokens = torch.tensor([CELLS]) if tokens is None else tokens
    values = {"output": teacher_output(), "assignment": assigned(), **changes}
    return Knowledge(memory=memory(tokens, shapes, mask), ground_truth=ground_truth or labelled(), **values)


def student_output(tokens, shapes=GRID, mask=None):
    maps = {f"level{index}": torch.zeros(1, 1, *shape) for index, shape in enumerate(shapes)}
    return StudentOutput(maps, memory=memory(tokens, shapes, mask))


def plain_loss(read=lambda tokens: tokens, width=4, **options):
    """A loss whose adapter changes nothing, and whose masks read the memory as it is; without ``read`` they learn."""
    projection = "teacher" if read else "learned"
    loss = TargetAwareLoss(channels=width, teacher_channels=4, read=read, projection=projection, **options)
    with torch.no_grad():
        loss.adapter.weight.copy_(torch.eye(4, width))
        loss.adapter.bias.zero_()
    return loss
