"""The label encoder on any detector: its losses, the plain student that stays, and the second run without traces."""

from __future__ import annotations

import math

from detr_distill.distill.students import student_of
from detr_distill.errors import ConfigError, DataError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise
from helpers.convolutional import CASES, make_masked_inputs
from helpers.distill.label_teachers import build_distilling


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_distils_on_any_detector(case, share):
    model = build_distilling(case, LABEL_ENCODER__HEAD_SHARE=share)
    inputs = make_masked_inputs(sizes=((64, 96), (96, 64)))
    with EventStorage():
        plain = set(model.student(inputs))
        losses = model(inputs)
        sum(losses.values()).backward()
    assert set(losses) == plain | {f"{name}_teacher" for name in plain} | {"loss_distill_feature"}
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    # Normalised, unrelated maps differ by twice their variance.
    assert losses["loss_distill_feature"].item() == pytest.approx(2.0, abs=0.5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_any_detector_takes_images_without_objects(case, counts):
    model = build_distilling(case)
    with EventStorage():
        losses = model(make_masked_inputs(counts=counts))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_image_without_objects_is_background_for_fcos():
    """Beside another image, whose labels are those that detectron2 gives it alone."""
    model = build_model(CASES["fcos"]()).eval()
    entries = make_inputs(counts=(0, 2))
    objects = [entry["instances"] for entry in entries]
    maps = [torch.zeros(1, 1, math.ceil(64 / stride), math.ceil(96 / stride)) for stride in (8, 16, 32, 64, 128)]
    anchors = model.anchor_generator(maps)
    labels, boxes = model.label_anchors(anchors, objects)
    alone, boxes_alone = model.label_anchors(anchors, objects[1:])
    assert (labels[0] == model.num_classes).all() and labels[0].shape == labels[1].shape
    assert torch.equal(labels[1], alone[0]) and (alone[0] < model.num_classes).any()
    assert torch.equal(boxes[1].tensor, boxes_alone[0].tensor) and len(boxes[0]) == len(boxes[1])


@pytest.mark.parametrize("case", CASES)
def test_the_student_stays_the_plain_detector(case):
    model = build_distilling(case).eval()
    plain = build_model(CASES[case]()).eval()
    plain.load_state_dict(
        {n.removeprefix("student."): v for n, v in model.state_dict().items() if n.startswith("student.")}
    )
    inputs = make_masked_inputs(sizes=((64, 96), (96, 64)), labels=False)
    with torch.no_grad():
        for ours, theirs in zip(model(inputs), plain(inputs), strict=True):
            assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
            assert torch.equal(ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("case", ["retinanet", "faster_rcnn", "conditional"])
def test_a_head_that_does_not_learn_from_the_maps_learns_as_a_plain_one(case):
    inputs = make_inputs(sizes=((64, 96), (96, 64)))

    def gradients(learns: bool) -> tuple[dict, dict]:
        keys = {"LABEL_ENCODER__HEAD_LEARNS": learns, "LABEL_ENCODER__DETACH_APPEARANCE": True}
        model = randomise(build_distilling(case, **keys))
        torch.manual_seed(0)
        with EventStorage():
            losses = model(inputs)
        sum(value for name, value in losses.items() if name.endswith("_teacher")).backward()
        assert all(value.requires_grad for value in model.student.parameters() if value.grad is not None)
        student = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
        return student, {name: value.grad for name, value in model.teacher.named_parameters()}

    (learning, taught), (held, alone) = gradients(True), gradients(False)
    assert any(value.any() for value in learning.values())
    assert not any(value.any() for value in held.values())
    for name, value in taught.items():
        assert torch.allclose(alone[name], value, rtol=1e-4, atol=1e-6), name


def test_the_second_run_leaves_no_traces():
    model, plain = build_distilling("retinanet"), build_model(CASES["retinanet"]()).train()
    plain.load_state_dict(model.student.state_dict())
    inputs = make_masked_inputs(sizes=((64, 96), (96, 64)))
    with EventStorage() as ours:
        model(inputs)
    with EventStorage() as theirs:
        plain(inputs)
    assert model.student.loss_normalizer == plain.loss_normalizer
    assert set(ours.latest()) == set(theirs.latest())


def test_running_means_of_the_head_are_those_of_its_own_maps():
    cfg = CASES["retinanet"]()
    cfg.MODEL.RETINANET.NORM = "BN"
    cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE, cfg.MODEL.DISTILL.TEACHER.NAME = "RetinaNet", "LabelEncoder"
    cfg.MODEL.DISTILL.MATCHERS, cfg.MODEL.DISTILL.LOSSES = [], ["FeatureLoss"]
    plain = build_model(cfg).train()
    cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
    model = build_model(cfg).train()
    model.student.load_state_dict(plain.state_dict())
    buffers = {name: id(value) for name, value in model.student.named_buffers()}
    with EventStorage():
        sum(model(make_inputs()).values()).backward()
        plain(make_inputs())
    expected = plain.state_dict()
    assert any("running_mean" in name and value.any() for name, value in expected.items())
    assert all(torch.equal(value, expected[name]) for name, value in model.student.state_dict().items())
    assert buffers == {name: id(value) for name, value in model.student.named_buffers()}


def test_part_of_the_images_gives_the_loss_of_an_image():
    """The dense detector's divisor counts the objects of the whole batch; of two equal images one gives the same."""
    values = []
    for share in (1.0, 0.5):
        model = randomise(build_distilling("retinanet", LABEL_ENCODER__HEAD_SHARE=share))
        with EventStorage():
            values.append(model(make_inputs(sizes=((64, 64),), counts=(3,)) * 2))
    for name in ("loss_cls_teacher", "loss_box_reg_teacher"):
        assert values[0][name].item() == pytest.approx(values[1][name].item(), rel=1e-5) and values[0][name] > 0


def test_training_without_labels_is_named():
    with pytest.raises(DataError, match="has no 'instances'"), EventStorage():
        build_distilling("conditional")(make_inputs(labels=False))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LABEL_ENCODER__IN_FEATURES": ["p9"]}, r"p9.*'p3', 'p4', 'p5', 'p6', 'p7'"),
        ({"LABEL_ENCODER__GUIDE": "nobody"}, "'student', 'label'"),
        ({"LABEL_ENCODER__NUM_HEADS": 3}, "NUM_HEADS is 3"),
        ({"LABEL_ENCODER__HEAD_SHARE": 0.0}, "HEAD_SHARE is 0"),
        ({"FEATURE_LOSS__IN_FEATURES": ["p9"]}, "student has"),
        ({"SCHEDULE__STOP_AT": -1.0}, "STOP_AT is -1"),
        ({"MATCHERS": ["FixedMatcher"]}, "DETR-type"),
        ({"LOSSES": ["PredictionLoss"]}, "PREDICTION_LOSS.GROUPS"),
    ],
)
def test_bad_keys_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_distilling("retinanet", **keys)


def test_the_encoder_sees_a_step_of_training_only():
    model = build_distilling("conditional").eval()
    model.teacher.forward = None  # would raise if called
    assert model(make_inputs(labels=False))
    step = student_of(model.student).start(make_inputs())
    assert set(step.features) == {"level0"}
