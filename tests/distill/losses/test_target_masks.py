"""Target-aware masks by hand: a query's quality, the weights of cells, and the loss of learned masks."""

from __future__ import annotations

import math

from detr_distill.detr.boxes import generalized_iou, intersection_over_union
from detr_distill.distill.losses.target_masks import cell_weights, mask_loss, query_quality, touched_cells

import pytest
import torch
from helpers.distill.target_aware_case import MASK, QUALITY, assigned, labelled, memory, teacher_output
from torchvision.ops import box_iou


def quality_of(label=1, exponent=0.5, activation="sigmoid", pairs=None):
    pairs = (pairs or assigned()).slice_layers(slice(-1, None))
    return query_quality(teacher_output(activation), labelled(label), pairs, exponent)[0].tolist()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_quality_by_hand(activation):
    if activation == "softmax":
        assert quality_of(activation=activation) == pytest.approx([math.sqrt(0.64 * 0.5), 0])
        return
    assert quality_of() == pytest.approx([QUALITY, 0])
    assert quality_of(exponent=1.0) == pytest.approx([0.64, 0])
    assert quality_of(exponent=0.0) == pytest.approx([0.5, 0])
    assert quality_of(exponent=0.25) == pytest.approx([0.64**0.25 * 0.5**0.75, 0])
    assert quality_of(label=0) == pytest.approx([math.sqrt(0.2 * 0.5), 0]), "the score of the object's class"
    assert quality_of(label=-1) == [0, 0], "a class that the teacher does not know"
    assert quality_of(pairs=assigned(query=2)) == [0, 0], "no overlap"


def test_iou_is_torchvisions_and_finite_without_area():
    corners = torch.rand(20, 2, 2, 2).sort(2).values.flatten(2)
    first, second = (torch.cat([(c[:, :2] + c[:, 2:]) / 2, c[:, 2:] - c[:, :2]], 1) for c in corners.unbind(1))
    reference = box_iou(corners[:, 0], corners[:, 1]).diagonal()
    assert torch.allclose(intersection_over_union(first, second), reference, atol=1e-5)
    assert (generalized_iou(first, second) <= reference + 1e-5).all()
    assert intersection_over_union(torch.zeros(4), torch.zeros(4)) == 0


def test_weights_by_hand():
    logits = torch.tensor([[[0.0, math.log(3), -math.log(3), 0], [0.0, 0, 0, math.log(3)]]])
    found = cell_weights(torch.tensor([[0.5, 1.0]]), logits, None)[0]
    other = (0.5, 0.5, 0.5, 0.75)
    assert found.tolist() == pytest.approx([0.5 * m * m + n * n for m, n in zip(MASK, other, strict=True)])
    padding = torch.tensor([[False, True, False, True]])
    assert cell_weights(torch.ones(1, 2), logits, padding)[0].bool().tolist() == [True, False, True, False]


def test_mask_loss_by_hand():
    place = memory(torch.zeros(1, 4, 1), mask=torch.tensor([[False, False, False, True]]))
    logits = torch.tensor([[[0.0, math.log(3), -math.log(3), 50]]])
    boxes = torch.tensor([[[0.25, 0.25, 0.1, 0.1]]])
    # The first cell is the object's, the last is padding.
    value = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert mask_loss(logits, boxes, torch.tensor([[0.5]]), place).item() == pytest.approx(value * 0.5, rel=1e-5)
    several = [tensor.repeat(1, 6, *[1] * (tensor.dim() - 2)) for tensor in (logits, boxes, torch.tensor([[0.5]]))]
    assert mask_loss(*several, place).item() == pytest.approx(value, rel=1e-5), "a mean where there is enough"


def test_cells_that_a_box_touches():
    """Of all levels, over the image without its padding."""
    box = torch.tensor([[[0.25, 0.5, 0.3, 0.9]]])
    place = memory(torch.zeros(1, 8 + 2, 1), shapes=[(2, 4), (1, 2)])
    assert touched_cells(place, box).tolist() == [[[1, 1, 0, 0, 1, 1, 0, 0, 1, 0]]]
    tiny = torch.tensor([[[0.6, 0.1, 1e-3, 1e-3]]])
    assert touched_cells(place, tiny).tolist() == [[[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]]], "never none"
    padding = torch.tensor([[False, False, True, True] * 2 + [False, True]])
    place = memory(torch.zeros(1, 10, 1), shapes=[(2, 4), (1, 2)], mask=padding)
    assert (touched_cells(place, box) * ~padding).tolist() == [[[1, 0, 0, 0, 1, 0, 0, 0, 1, 0]]]
