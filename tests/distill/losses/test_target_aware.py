"""The target-aware loss by hand: padding, other grids and levels, no objects, and where its gradient goes."""

from __future__ import annotations

import math

from detr_distill.distill.losses.target_aware import TargetAwareLoss
from detr_distill.distill.schedule import scale_student
from detr_distill.errors import ConfigError
from detr_distill.structures import GroundTruth, Pairs

import pytest
import torch
from helpers.distill.target_aware_case import (
    CELLS,
    MASK_NAME,
    NAME,
    QUALITY,
    WEIGHTS,
    knowledge,
    plain_loss,
    student_output,
)
from torch import nn


def expected(weights, errors):
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / max(sum(weights), 1)


def test_loss_by_hand():
    difference = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1]]])
    student = student_output(torch.tensor([CELLS]) + difference)
    errors = [0.25, 1.0, 2.25, 1.0]
    assert plain_loss()(student, knowledge(), [])[NAME].item() == pytest.approx(expected(WEIGHTS, errors))
    tripled = plain_loss()
    tripled.weight = 3.0
    assert tripled(student, knowledge(), [])[NAME].item() == pytest.approx(3 * expected(WEIGHTS, errors))
    # A weight of more than one cell is divided out: 40 times the tokens, 40 times the weight, the same mean.
    many = knowledge(torch.tensor([CELLS]).repeat(1, 40, 1), shapes=[(80, 2)])
    repeated = student_output((torch.tensor([CELLS]) + difference).repeat(1, 40, 1), shapes=[(80, 2)])
    mean = sum(w * e for w, e in zip(WEIGHTS, errors, strict=True)) / sum(WEIGHTS)
    assert plain_loss()(repeated, many, [])[NAME].item() == pytest.approx(mean, rel=1e-5)


def test_padding_of_either_side_does_not_count():
    difference = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1]]])
    left, right = (torch.tensor([[False, column, False, column]]) for column in (False, True))
    student = student_output(torch.tensor([CELLS]) + difference, mask=right)
    value = expected([WEIGHTS[0], 0, WEIGHTS[2], 0], [0.25, 1.0, 2.25, 1.0])
    assert plain_loss()(student, knowledge(mask=left), [])[NAME].item() == pytest.approx(value)
    student = student_output(torch.tensor([CELLS]) + difference)
    assert plain_loss()(student, knowledge(mask=right), [])[NAME].item() == pytest.approx(value)


def test_another_grid_is_resized_level_by_level():
    """Each level is constant, so that resizing is exact; a mix-up of levels or of axes is not."""
    tokens = torch.tensor([CELLS[:2]]).repeat_interleave(torch.tensor([8, 2]), dim=1)
    known = knowledge(tokens, shapes=[(2, 4), (1, 2)])
    student = student_output(torch.zeros(1, 5, 4), shapes=[(2, 2), (1, 1)])
    weights = [WEIGHTS[0]] * 4 + [WEIGHTS[1]]
    assert plain_loss()(student, known, [])[NAME].item() == pytest.approx(expected(weights, [0.25] * 5), rel=1e-5)


def test_every_level_learns_from_the_nearest_in_size():
    """One level of the teacher serves two of the student's; of two, the one of the same size is read."""
    one, two = torch.tensor([CELLS[:1]]).repeat(1, 8, 1), torch.tensor([CELLS[:1] + CELLS[1:2] * 4])
    student = student_output(torch.zeros(1, 10, 4), shapes=[(2, 4), (1, 2)])
    weights = [WEIGHTS[0]] * 10
    found = plain_loss()(student, knowledge(one, shapes=[(2, 4)]), [])[NAME].item()
    assert found == pytest.approx(expected(weights, [0.25] * 10), rel=1e-5)
    student = student_output(torch.zeros(1, 4, 4), shapes=[(2, 2)])
    found = plain_loss()(student, knowledge(two, shapes=[(1, 1), (2, 2)]), [])[NAME].item()
    assert found == pytest.approx(expected([WEIGHTS[1]] * 4, [0.25] * 4), rel=1e-5)


def test_neck_maps_count_by_the_memorys_masks():
    known = knowledge()
    known.features = {"level0": torch.full((1, 4, 2, 2), 1.0)}
    student = student_output(torch.full((1, 4, 4), 99.0))
    student.features = {"level0": torch.stack([torch.tensor([[1.0, 2], [3, 4]])] * 4)[None]}
    found = plain_loss(features="neck")(student, known, [])[NAME].item()
    assert found == pytest.approx(expected(WEIGHTS, [0, 1, 4, 9]))
    student.memory = None
    assert plain_loss(features="neck")(student, known, [])[NAME].item() == pytest.approx(found), "no encoder"


def test_no_objects_give_zero():
    empty = torch.zeros(2, 1, 0, dtype=torch.long)
    truth = GroundTruth(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, 4), torch.zeros(1, 0).bool(), [0])
    known = knowledge(ground_truth=truth, assignment=Pairs(empty, empty, empty.float()))
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    losses = plain_loss(read=None)(student_output(tokens), known, [])
    assert {name: value.item() for name, value in losses.items()} == {NAME: 0, MASK_NAME: 0}
    sum(losses.values()).backward()
    assert not tokens.grad.any()


def test_gradient_reaches_student_and_adapter_alone():
    teacher_layer = nn.Linear(4, 4)
    cells = torch.tensor([CELLS], requires_grad=True)
    known = knowledge(cells)
    known.output.hidden.requires_grad_()
    tokens = torch.randn(1, 4, 3, requires_grad=True)
    loss = TargetAwareLoss(channels=3, teacher_channels=4, projection="teacher", read=teacher_layer)
    assert {name for name, _ in loss.named_parameters()} == {"adapter.weight", "adapter.bias"}
    loss(student_output(tokens), known, [])[NAME].backward()
    assert tokens.grad.any(-1).all() and all(p.grad.any() for p in loss.adapter.parameters())
    sum(plain_loss(read=None)(student_output(torch.randn(1, 4, 4)), known, []).values()).backward()
    assert cells.grad is None and known.output.hidden.grad is None and teacher_layer.weight.grad is None


def test_learned_masks_learn_from_their_own_loss_alone():
    """The masked error, which masks of zero would minimise, gives the projection no gradient."""
    loss = plain_loss(read=None)
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    losses = loss(student_output(tokens), knowledge(), [])
    losses[NAME].backward(retain_graph=True)
    assert all(p.grad is None for p in loss.mask_projection.parameters())
    error = (tokens - torch.tensor([CELLS])).square().mean(-1).detach()[0]
    assert losses[NAME].item() == pytest.approx(expected([QUALITY / 4] * 4, error.tolist())), "masks start at a half"
    assert losses[MASK_NAME].item() == pytest.approx(QUALITY * math.log(2))
    doubled = plain_loss(read=None)
    doubled.load_state_dict(loss.state_dict())
    doubled.weight = 2.0
    twice = doubled(student_output(tokens), knowledge(), [])
    assert twice[NAME] == 2 * losses[NAME] and twice[MASK_NAME] == losses[MASK_NAME]
    tokens.grad = None
    losses[MASK_NAME].backward()
    assert loss.mask_projection.weight.grad.any() and tokens.grad is None


def test_waiting_students_feel_nothing():
    """SCHEDULE.STUDENT_FROM trains adapters alone: the encoder's output is held back too."""
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    loss = plain_loss()
    loss(scale_student(student_output(tokens), 0.0), knowledge(), [])[NAME].backward()
    assert not tokens.grad.any() and loss.adapter.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "head"}, "FEATURES is 'head'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TargetAwareLoss(channels=4, teacher_channels=4, **options)
