"""The written gradient of the generalised IoU."""

from __future__ import annotations

from detr_distill.detr.boxes import generalized_iou, inverse_sigmoid, pairwise_giou, to_corners

import torch
from helpers.host_reads import host_reads
from torchvision.ops import generalized_box_iou_loss


def random_boxes(*shape, seed):
    values = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * 0.5 + 0.1).requires_grad_()


def test_its_gradient_is_that_of_its_values_and_of_torchvision():
    first, second = random_boxes(2, 3, 1, seed=0), random_boxes(2, 1, 4, seed=1)
    assert torch.autograd.gradcheck(generalized_iou, (first, second))
    pairs = random_boxes(50, seed=2), random_boxes(50, seed=3)
    found = torch.autograd.grad(generalized_iou(*pairs).sum(), pairs)
    loss = generalized_box_iou_loss(*(to_corners(boxes) for boxes in pairs), reduction="sum")
    for gradient, expected in zip(found, torch.autograd.grad(-loss, pairs), strict=True):
        assert torch.allclose(gradient, expected, atol=1e-5)


def test_equal_and_empty_boxes_have_finite_gradients():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.0, 0.0]], requires_grad=True)
    value = pairwise_giou(boxes, boxes.detach())
    value.sum().backward()
    assert value.isfinite().all() and boxes.grad.isfinite().all()
    # Two equal boxes: to grow loses as much as to shrink, as torch's minimum shares the gradient.
    assert torch.autograd.grad(generalized_iou(boxes[:1], boxes[:1].detach()).sum(), boxes)[0][0].abs().max() < 1e-4


def test_neither_direction_reads_the_device():
    first, second = random_boxes(3, seed=4), random_boxes(3, seed=5)
    with host_reads() as reads:
        generalized_iou(first, second).sum().backward()
    assert not reads


def test_logits_go_on_beyond_their_limit():
    values = torch.tensor([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0, -0.1], dtype=torch.float64)
    found = inverse_sigmoid(values, 1e-5)
    inside = values.clamp(0, 1)
    expected = (inside.clamp(min=1e-5) / (1 - inside).clamp(min=1e-5)).log()
    assert torch.allclose(found, expected, atol=2e-5)
