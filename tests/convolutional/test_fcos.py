"""FCOS: the box loss weighed by centre-ness against a loop, and its losses in mixed precision."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS as PythonFCOS
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.convolutional import dense_cfg

SIZES = ((160, 224), (192, 160))


def build(weighted: bool) -> torch.nn.Module:
    cfg = dense_cfg("FCOS")
    cfg.MODEL.FCOS.CENTERNESS_WEIGHTS = weighted
    torch.manual_seed(0)
    return build_model(cfg).train()


@pytest.fixture(scope="module")
def step():
    """What a step of FCOS takes: images, maps, predictions of random boxes, and objects, none in the last image."""
    model, inputs = build(weighted=False), make_inputs((*SIZES, (160, 160)), counts=(2, 3, 0))
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        found = model.backbone(images.tensor)
        features = [found[name] for name in model.head_in_features]
        logits, deltas, centerness = model.head(features)
        deltas = [torch.rand_like(values) * 6 for values in deltas]
    return images, features, [logits, deltas, centerness], [entry["instances"] for entry in inputs]


def losses_of(model, step, change=lambda values: values) -> dict[str, torch.Tensor]:
    images, features, predictions, objects = step
    with EventStorage():
        return model.forward_training(images, features, [[change(x) for x in level] for level in predictions], objects)


def overlap(first, second) -> float:
    """Generalised IoU of two boxes of corners, by its definition."""

    def area(left, top, right, bottom):
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    pairs = list(zip(first, second, strict=True))
    inner = area(*(max(pair) for pair in pairs[:2]), *(min(pair) for pair in pairs[2:]))
    outer = area(*(min(pair) for pair in pairs[:2]), *(max(pair) for pair in pairs[2:]))
    union = area(*first) + area(*second) - inner
    return inner / union - (outer - union) / outer


def test_the_box_loss_weighed_by_centerness_is_that_of_a_loop(step):
    model = build(weighted=True)
    _, features, (_, deltas, _), objects = step
    anchors = model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, objects)
    flat = torch.cat([values.flatten(2).transpose(1, 2) for values in deltas], dim=1).tolist()
    locations = [
        ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1) for level in anchors for x1, y1, x2, y2 in level.tensor.tolist()
    ]
    weights, total = [], 0.0
    for image in range(len(objects)):
        for place, (x, y, stride) in enumerate(locations):
            if labels[image][place] == model.num_classes:
                continue
            left, top, right, bottom = goal = boxes[image].tensor[place].tolist()
            a, b, c, d = (stride * distance for distance in flat[image][place])
            across, down = (x - left, right - x), (y - top, bottom - y)
            weight = math.sqrt(min(across) / max(across) * min(down) / max(down))
            weights.append(weight)
            total += weight * (1 - overlap((x - a, y - b, x + c, y + d), goal))
    assert len(weights) > 20 and sum(weights) > 1
    weighted, alike = losses_of(model, step), losses_of(build(weighted=False), step)
    assert weighted["loss_fcos_loc"].item() == pytest.approx(total / sum(weights), rel=1e-4)
    assert weighted["loss_fcos_loc"] != alike["loss_fcos_loc"]
    assert all(torch.equal(weighted[name], alike[name]) for name in ("loss_fcos_cls", "loss_fcos_ctr"))


def test_without_the_key_the_losses_are_detectron2s(step):
    model = build(weighted=False)
    found, images = losses_of(model, step), step[0]
    with EventStorage():
        model.loss_normalizer = 300  # its start, which the losses above have moved
        objects = step[3]
        empty = [entry for entry in objects if not len(entry)]
        assert len(empty) == 1 and images is step[0]
        logits, deltas, centerness = model._transpose_dense_predictions(step[2], [model.num_classes, 4, 1])
        anchors = model.anchor_generator(step[1])
        labels, boxes = model.label_anchors(anchors, objects)
        expected = PythonFCOS.losses(model, anchors, logits, labels, deltas, boxes, centerness)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_an_image_without_objects_has_a_box_loss_of_zero(step, weighted):
    images, features, predictions, objects = step
    predictions = [[values.clone().requires_grad_() for values in level] for level in predictions]
    nothing = [entry[:0] for entry in objects]
    losses = losses_of(build(weighted), (images, features, predictions, nothing))
    assert losses["loss_fcos_loc"] == 0 and losses["loss_fcos_cls"] > 0
    sum(losses.values()).backward()
    assert all(values.grad is not None and values.grad.isfinite().all() for level in predictions for values in level)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_half_predictions_are_taken_in_float32(step, weighted):
    """The same as those of the rounded predictions, and so right to their last digit."""
    expected = losses_of(build(weighted), step, lambda values: values.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses_of(build(weighted), step, lambda values: values.bfloat16())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name])
