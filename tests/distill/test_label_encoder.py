"""The label encoder: its parts by hand, its properties on any detector."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.distill.label_descriptor import LabelDescriptor
from detr_distill.distill.label_encoder import LabelEncoder
from detr_distill.distill.label_points import PointEncoder, TransformNetwork
from detr_distill.distill.label_regions import BoxRegions, MaskRegions, write_through
from detr_distill.distill.students import StudentStep, start_student
from detr_distill.errors import ConfigError, DataError

import pytest
import torch
import torch.nn.functional as F
from builders import make_inputs, randomise
from convolutional import CASES, make_masked_inputs
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from distill.label_teachers import build_distilling
from torch import nn

DEVICE = torch.device("cpu")


def labels_of(boxes, classes, size=(64, 96), masks=None) -> dict:
    instances = Instances(
        size, gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=torch.tensor(classes).long()
    )
    if masks is not None:
        instances.gt_masks = masks
    return {"instances": instances}


def test_descriptor_rows_by_hand():
    step = StudentStep([labels_of([[24.0, 16, 48, 64]], [1]), labels_of([], [])], {}, (64, 96))
    labels = LabelDescriptor(num_classes=3, context=True, class_embedding=0, use_masks=False)(step, DEVICE)
    expected = torch.tensor(
        [
            [[-0.5, -0.5, 0.0, 1.0, -1, 1, -1], [-1, -1, 1, 1, -1, -1, -1]],
            [[-1.0, -1, 1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1]],
        ]
    )
    assert torch.allclose(labels.rows, expected)
    assert labels.valid.tolist() == [[True, True], [True, False]]
    assert labels.is_context.tolist() == [[False, True], [True, False]]


def test_descriptor_with_masks_and_class_embedding():
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 16:64, 24:36] = True  # the left half of the box
    step = StudentStep([labels_of([[24.0, 16, 48, 64]], [1], masks=BitMasks(mask))], {}, (64, 96))
    descriptor = LabelDescriptor(num_classes=3, context=False, class_embedding=5, use_masks=True)
    labels = descriptor(step, DEVICE)
    assert labels.rows.shape == (1, 1, descriptor.width) and descriptor.width == 4 + 5 + 49
    crop = labels.rows[0, 0, 9:].view(7, 7)
    assert (crop[:, :3] == 1).all() and (crop[:, 4:] == -1).all()
    assert labels.masks.shape == (1, 1, 64, 96)
    assert MaskRegions(labels.masks, (8, 12)).cells[0, 0].view(8, 12)[2:, 3:4].all()
    with pytest.raises(ConfigError, match="gt_masks"):
        descriptor(StudentStep([labels_of([[0.0, 0, 9, 9]], [0])], {}, (64, 96)), DEVICE)


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


def test_regions_by_hand():
    boxes = torch.tensor([[[16.0, 8, 40, 24], [0, 0, 8, 8], [50, 30, 51, 31]]])
    regions = BoxRegions(boxes, torch.tensor([[True, True, True]]), (32, 64), (4, 8))
    # Cells of 8 pixels; a cell's index times 8 must lie between the edges, both included.
    cells = regions.rows[0].T[:, :, None] * regions.columns[0].T[:, None, :]
    expected = torch.zeros(3, 4, 8)
    expected[0, 1:4, 2:6] = 1
    expected[1, :2, :2] = 1
    assert torch.equal(cells, expected)
    values = torch.randn(1, 2, 4, 8)
    read = regions.read(values)
    assert torch.allclose(read[0, 0], values[0, :, 1:4, 2:6].mean((1, 2)), atol=1e-6)
    assert (read[0, 2] == 0).all(), "a box that covers no cell reads nothing"
    written = regions.write(torch.tensor([[[1.0, 0], [0, 2], [5, 5]]]))
    assert torch.equal(written[0, 0], expected[0]) and torch.equal(written[0, 1], 2 * expected[1])
    assert torch.equal(regions.covered()[0], (expected.sum(0) > 0).float())
    masks = MaskRegions(F.interpolate(cells[None], size=(32, 64)).bool(), (4, 8))
    assert torch.allclose(masks.read(values), read, atol=1e-6)
    assert torch.allclose(masks.write(read), regions.write(read), atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_writing_through_a_convolution_is_writing_and_convolving(kernel):
    torch.manual_seed(0)
    boxes = torch.tensor(
        [[[4.0, 8, 31, 60], [0, 0, 96, 64], [50, 3, 52, 5]], [[90.0, 50, 96, 64], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    valid = torch.tensor([[True, True, True], [True, False, False]])
    regions = BoxRegions(boxes, valid, (64, 96), (8, 12))
    values = torch.randn(2, 3, 6, requires_grad=True)
    convolution = nn.Conv2d(6, 6, kernel, padding=kernel // 2)
    expected = convolution(regions.write(values))
    both = write_through(torch.stack([2 * values, values]), [regions, regions], convolution)
    found = both[1]
    assert torch.allclose(found, expected, atol=1e-5)
    weight = torch.randn_like(expected)
    wanted = [values, convolution.weight, convolution.bias]
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)


def small_encoder(**options) -> LabelEncoder:
    descriptor = LabelDescriptor(5, options.pop("context", True), 0, False)
    encoder = LabelEncoder(in_features=["p"], channels=8, descriptor=descriptor, num_heads=2, **options)
    return randomise(encoder).train()


def random_step(counts=(2, 3), size=(64, 96), cells=(8, 12)) -> StudentStep:
    inputs = make_inputs(sizes=(size,) * len(counts), counts=counts)
    maps = torch.randn(len(counts), 8, *cells, generator=torch.Generator().manual_seed(5))
    return StudentStep(inputs, {"p": maps}, size)


@pytest.mark.parametrize("guide", ["student", "label"])
@pytest.mark.parametrize("context", [True, False])
def test_maps_of_an_image_do_not_depend_on_its_neighbours(guide, context):
    encoder = small_encoder(guide=guide, context=context)
    step = random_step((2, 5))
    together = encoder(step, frozenset()).features["p"]
    alone = encoder(
        dataclasses.replace(step, batched_inputs=step.batched_inputs[:1], features={"p": step.features["p"][:1]}),
        frozenset(),
    ).features["p"]
    assert together.shape == step.features["p"].shape
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_guides_differ_and_the_context_matters():
    step = random_step()
    maps = [
        small_encoder(**options)(step, frozenset()).features["p"]
        for options in ({"guide": "student"}, {"guide": "label"}, {"context": False})
    ]
    assert not torch.allclose(maps[0], maps[1], atol=1e-3) and not torch.allclose(maps[0], maps[2], atol=1e-3)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
@pytest.mark.parametrize("cells", [(8, 12), (1, 1)])
@pytest.mark.parametrize("context", [True, False])
def test_images_without_objects_and_maps_of_one_cell(counts, cells, context):
    encoder = small_encoder(context=context)
    maps = encoder(random_step(counts, cells=cells), frozenset()).features["p"]
    assert maps.isfinite().all()
    maps.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_detached_appearance_sends_no_gradient_to_the_student():
    for detach in (True, False):
        step = random_step()
        step.features["p"].requires_grad_()
        small_encoder(detach_appearance=detach)(step, frozenset()).features["p"].square().sum().backward()
        assert (step.features["p"].grad is None) == detach


def test_a_kept_label_is_added_to_what_attention_tells():
    plain, keeping = small_encoder(), small_encoder(keep_label=True)
    appearance, embedding = torch.randn(1, 2, 3, 8), torch.randn(2, 3, 8)
    labels = dataclasses.replace(plain.descriptor(random_step(), DEVICE), valid=torch.ones(2, 3, dtype=torch.bool))
    added = keeping._relate(appearance, embedding, labels) - plain._relate(appearance, embedding, labels)
    assert torch.allclose(added, embedding.unsqueeze(0), atol=1e-5)


def test_images_take_turns_at_the_head():
    encoder = small_encoder(head_share=0.5)
    step = random_step((1, 1, 1, 1))
    turns = []
    for iteration in range(3):
        with EventStorage(iteration):
            chosen = encoder(step, frozenset()).second_run.images
        turns.append((chosen.start, chosen.stop))
    assert turns == [(0, 2), (2, 4), (0, 2)]


@pytest.mark.parametrize(("images", "share"), [(3, 0.5), (5, 0.5), (3, 0.67), (4, 0.3), (1, 0.1), (7, 1.0)])
def test_every_image_has_its_turn(images, share):
    encoder, read, parts = small_encoder(head_share=share), set(), set()
    for iteration in range(8):
        with EventStorage(iteration):
            part = range(images)[encoder._head_images(images)]
        read.update(part)
        parts.add(len(part))
    assert read == set(range(images)) and parts == {max(1, round(share * images))}


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
        ({"LABEL_ENCODER__GUIDE": "nobody"}, "student, label"),
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
    step = start_student(model.student, make_inputs())
    assert set(step.features) == {"level0"}
