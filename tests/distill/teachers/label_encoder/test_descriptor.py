"""From labels to embeddings by hand: the descriptor's rows, their own matrices, and the encoder of an image's rows."""

from __future__ import annotations

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.teachers.label_encoder.descriptor import LabelDescriptor
from detr_distill.distill.teachers.label_encoder.points import PointEncoder, TransformNetwork
from detr_distill.distill.teachers.label_encoder.regions import MaskRegions
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from helpers.builders import randomise

SIZE = (64, 96)


def entry_of(boxes, classes, masks=None) -> dict:
    instances = Instances(
        SIZE, gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=torch.tensor(classes).long()
    )
    if masks is not None:
        instances.gt_masks = masks
    return {"image": torch.zeros(3, *SIZE), "instances": instances}


def describe(descriptor: LabelDescriptor, *entries: dict):
    return descriptor(read_ground_truth(list(entries), "cpu"), SIZE)


def test_descriptor_rows_by_hand():
    descriptor = LabelDescriptor(num_classes=3, context=True, class_embedding=0, use_masks=False)
    labels = describe(descriptor, entry_of([[24.0, 16, 48, 64]], [1]), entry_of([], []))
    expected = torch.tensor(
        [
            [[-0.5, -0.5, 0.0, 1.0, -1, 1, -1], [-1, -1, 1, 1, -1, -1, -1]],
            [[-1.0, -1, 1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1]],
        ]
    )
    assert torch.allclose(labels.rows, expected)
    assert labels.valid.tolist() == [[True, True], [True, False]]
    assert labels.is_context.tolist() == [[False, True], [True, False]]


def test_corners_end_at_the_last_pixel_where_wanted():
    """As LGD's code has it: 95 and 63 of an image of 96x64, the context's included."""
    descriptor = LabelDescriptor(3, context=True, class_embedding=0, use_masks=False, clamp_corners=True)
    rows = describe(descriptor, entry_of([[24.0, 16, 96, 64], [0, 0, 95, 63]], [1, 0])).rows[0, :, :4]
    right, bottom = 2 * 95 / 96 - 1, 2 * 63 / 64 - 1
    expected = [[-0.5, -0.5, right, bottom], [-1, -1, right, bottom], [-1, -1, right, bottom]]
    assert torch.allclose(rows, torch.tensor(expected))


def test_descriptor_with_masks_and_class_embedding():
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 16:64, 24:36] = True  # the left half of the box
    descriptor = LabelDescriptor(num_classes=3, context=False, class_embedding=5, use_masks=True)
    labels = describe(descriptor, entry_of([[24.0, 16, 48, 64]], [1], masks=BitMasks(mask)))
    assert labels.rows.shape == (1, 1, descriptor.width) and descriptor.width == 4 + 5 + 49
    crop = labels.rows[0, 0, 9:].view(7, 7)
    assert (crop[:, :3] == 1).all() and (crop[:, 4:] == -1).all()
    assert labels.masks.shape == (1, 1, 64, 96)
    assert MaskRegions(labels.masks, (8, 12)).cells[0, 0].view(8, 12)[2:, 3:4].all()
    with pytest.raises(ConfigError, match="gt_masks"):
        describe(descriptor, entry_of([[0.0, 0, 9, 9]], [0]))


def test_transform_is_each_rows_own_matrix():
    network = randomise(TransformNetwork(6))
    rows = torch.randn(2, 3, 6)
    matrices = network.matrix(network.layers(rows)).view(2, 3, 6, 6)
    expected = torch.stack([torch.stack([row @ m for row, m in zip(r, ms)]) for r, ms in zip(rows, matrices)])  # noqa: B905
    assert torch.allclose(network(rows), expected, atol=1e-5)


def test_point_encoder_ignores_padding_and_order():
    encoder = randomise(PointEncoder(7)).eval()
    rows, valid = torch.randn(1, 3, 7), torch.tensor([[True, True, False]])
    alone = encoder(rows[:, :2], valid[:, :2])
    assert torch.allclose(encoder(rows, valid)[:, :2], alone, atol=1e-5)
    turned = encoder(rows[:, [1, 0]], valid[:, :2])
    assert torch.allclose(turned[:, [1, 0]], alone, atol=1e-5)
    assert not torch.allclose(encoder(rows, torch.ones_like(valid))[:, :2], alone, atol=1e-4), "rows of an image meet"
    assert encoder(rows, torch.zeros_like(valid)).isfinite().all()
