"""Prediction matching between a DETR and a convolutional detector, in both directions."""

from __future__ import annotations

import dataclasses

from detr_distill.convolutional.detections import as_output
from detr_distill.convolutional.predictions import listening, one_layer, region_output
from detr_distill.detr.boxes import pairwise_iou, to_corners
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.match import Match
from detr_distill.distill.matchers.overlap import OverlapMatcher
from detr_distill.distill.students import StudentOutput, student_of
from detr_distill.errors import ConfigError
from detr_distill.structures import PREDICTIONS

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise
from helpers.convolutional import CASES
from helpers.distill.student_steps import whole_step

DETRS = ("conditional", "deformable")
ALL = frozenset({PREDICTIONS})


@pytest.fixture
def distiller(tmp_path):
    def build(teacher, student, **keys):
        teacher_cfg = CASES[teacher]()
        teacher_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = teacher_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.005
        torch.manual_seed(1)
        network = build_model(teacher_cfg)
        network = randomise(network, 1) if teacher in DETRS else network
        (tmp_path / "teacher.yaml").write_text(teacher_cfg.dump())
        torch.save({"model": network.state_dict()}, tmp_path / "teacher.pth")
        cfg = CASES[student]()
        node = cfg.MODEL.DISTILL
        node.STUDENT_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE, "DistillDetector"
        node.TEACHER.CONFIG_FILE, node.TEACHER.WEIGHTS = str(tmp_path / "teacher.yaml"), str(tmp_path / "teacher.pth")
        node.MATCHERS = ["AdaptiveMatcher"] if student in DETRS else ["OverlapMatcher"]
        node.LOSSES = ["PredictionLoss"]
        node.PREDICTION_LOSS.BOX_SCORE_THRESHOLD = 0.0
        node.OVERLAP_MATCHER.SCORE_THRESHOLD, node.OVERLAP_MATCHER.MIN_IOU = 0.0, 0.05
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return build_model(cfg).train()

    return build


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("conditional", "retinanet"), ("conditional", "fcos"), ("deformable", "faster_rcnn"),
        ("conditional", "faster_rcnn"), ("retinanet", "conditional"), ("faster_rcnn", "conditional"),
        ("fcos", "deformable"),
    ],
)  # fmt: skip
def test_every_pair_takes_a_step(distiller, teacher, student):
    model = distiller(teacher, student)
    if student == "fcos":  # whose boxes start without area
        torch.nn.init.ones_(model.student.head.bbox_pred.bias)
    with EventStorage(0):
        losses = model(make_inputs())
    taught = {name: value for name, value in losses.items() if name.startswith("loss_distill")}
    assert {name.split("_")[2] for name in taught} == {"class", "box", "giou"}
    assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in losses.values())
    assert all(value > 0 for value in taught.values())
    sum(taught.values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.detector.parameters())
    backbone = [parameter for parameter in model.student.backbone.parameters() if parameter.requires_grad]
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in backbone)
    assert student_of(model.student).num_classes == student_of(model.teacher.detector).num_classes == 5


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("retinanet", "conditional"), ("faster_rcnn", "conditional"), ("conditional", "faster_rcnn")],
)
def test_mixed_precision_keeps_losses_in_float32(distiller, teacher, student):
    with EventStorage(0), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distiller(teacher, student)(make_inputs())
    for name, value in losses.items():
        if name.startswith("loss_distill"):
            assert value.dtype == torch.float32 and torch.isfinite(value), name


def test_detections_in_the_form_of_a_decoder_by_hand():
    """An image 100 wide and 50 high, where one box reaches beyond the border and one lies there; and an empty image."""
    corners = torch.tensor([[10.0, 10, 30, 20], [80, 0, 200, 50], [110, 10, 130, 20]])
    found = Instances((50, 100), pred_boxes=Boxes(corners))
    found.scores, found.pred_classes = torch.tensor([0.75, 0.5, 0.25]), torch.tensor([2, 0, 1])
    none = Instances((50, 100), pred_boxes=Boxes(torch.zeros(0, 4)))
    none.scores, none.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    output = as_output([found, none], num_classes=3)
    assert output.logits.shape == (1, 2, 3, 3) and output.activation == "sigmoid"
    scores = torch.tensor([[0.0, 0, 0.75], [0.5, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(output.probabilities()[0, 0], scores, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.boxes[0, 0, :2], torch.tensor([[0.2, 0.3, 0.2, 0.2], [0.9, 0.5, 0.2, 1.0]]))
    assert output.probabilities()[0, 1].max() < 2e-6
    torch.testing.assert_close(output.boxes[0, 1, 0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert as_output([none, none], 3).boxes.shape == (1, 2, 1, 4)


def test_padded_detections_teach_nothing(distiller):
    """An image with fewer detections than its neighbour has as many pairs as it has detections."""
    model = distiller("retinanet", "conditional")
    step, student = whole_step(model.student, make_inputs(), ALL)
    teacher = model.teacher(step, ALL)
    assert teacher.counts is not None and len(teacher.counts) == 2
    teacher.counts = [3, 1]
    cost = model.matchers["AdaptiveMatcher"].cost(student, teacher)
    assert cost.counts == [3, 1] and cost.values.shape[-1] == teacher.output.logits.shape[2]


def overlap_matcher(**options) -> OverlapMatcher:
    return OverlapMatcher(classes=match_classes(None, None, 2, 2), student_predictions=2, **options)


def matched(match) -> list[tuple[int, int, int]]:
    """(image, prediction, detection) of every pair."""
    pairs = match.pairs
    return sorted(
        (image, pairs.query[0, image, place].item(), pairs.target[0, image, place].item())
        for image, place in pairs.weight[0].nonzero().tolist()
    )


def test_overlap_matching_by_hand():
    """Two detections side by side each teach the predictions on it; an unsure one, and the layer before, teach none."""
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.12], [0.6, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    student = StudentOutput({}, {"own": one_layer(torch.zeros(1, 4, 2), boxes, "sigmoid")})
    goals = torch.tensor([[[0.9, 0.9, 0.1, 0.1], [0.62, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]]])
    scores = torch.tensor([[[0.2, 0.1], [0.9, 0.1], [0.1, 0.8]]])
    last = one_layer(torch.logit(scores), goals, "sigmoid")
    teacher = dataclasses.replace(
        last,
        logits=torch.cat([last.logits.flip(2), last.logits]),
        boxes=torch.cat([last.boxes.roll(1, 2), last.boxes]),
    )
    match = overlap_matcher(min_iou=0.5)(student, Knowledge(output=teacher), None)
    # Prediction 1 has three fifths of detection 2's area; 3 is where detection 0 is, below the threshold.
    assert matched(match) == [(0, 0, 2), (0, 1, 2), (0, 2, 1)]
    assert match.teacher_layer == (1,) and match.student_group == "own"


def test_an_image_without_detections_teaches_nothing():
    """Its padding is the whole image, which every prediction overlaps."""
    found = Instances((50, 100), pred_boxes=Boxes(torch.tensor([[0.0, 0, 100, 50]])))
    found.scores, found.pred_classes = torch.tensor([0.75]), torch.tensor([0])
    predictions = torch.tensor([0.5, 0.5, 0.5, 0.5]).repeat(2, 2, 1)
    student = StudentOutput({}, {"own": one_layer(torch.zeros(2, 2, 2), predictions, "sigmoid")})
    knowledge = Knowledge(output=as_output([found, found[:0]], 2), counts=[1, 0])
    match = overlap_matcher(score_threshold=0.0, min_iou=0.0)(student, knowledge, None)
    assert matched(match) == [(0, 0, 0), (0, 1, 0)]


def pair_up(predictions: list[float], detections: list[float], **options) -> Match:
    """Pairs boxes of one size, a fifth of the image, whose centres lie at these places of a row."""
    student, teacher = (
        one_layer(torch.full((1, len(places), 2), 2.0), torch.tensor([[[x, 0.5, 0.2, 0.2] for x in places]]), "sigmoid")
        for places in (predictions, detections)
    )
    return overlap_matcher(**options)(StudentOutput({}, {"own": student}), Knowledge(output=teacher), None)


def test_a_prediction_follows_the_closest_detection_alone():
    """Each of two predictions overlaps both detections by more than is asked for."""
    assert matched(pair_up([0.21, 0.24], [0.20, 0.25], min_iou=0.5)) == [(0, 0, 0), (0, 1, 1)]
    assert matched(pair_up([0.21, 0.22], [0.20, 0.25], min_iou=0.5)) == [(0, 0, 0), (0, 1, 0)]


def test_a_prediction_that_overlaps_too_little_follows_nothing():
    """Without any overlap not even where the lowest that is asked for is 0."""
    assert matched(pair_up([0.21, 0.8], [0.20, 0.25], min_iou=0.0)) == [(0, 0, 0)]
    assert matched(pair_up([0.21, 0.26], [0.20], min_iou=0.5)) == [(0, 0, 0), (0, 1, 0)]
    assert matched(pair_up([0.21, 0.28], [0.20], min_iou=0.5)) == [(0, 0, 0)], "three sevenths are too little"


def test_dense_predictions_are_those_of_inference(distiller):
    """Boxes and scores of RetinaNet as a decoder's output hold every detection that its own inference gives."""
    student = distiller("conditional", "retinanet").student
    student.test_score_thresh = 0.0
    inputs = make_inputs(sizes=((40, 96), (64, 48)))
    with torch.no_grad(), EventStorage(0):
        output = whole_step(student, inputs, ALL)[1].outputs["own"]
        student.eval()
        detections = student(inputs)
    for image, entry in enumerate(inputs):
        found = detections[image]["instances"]
        assert len(found) > 10
        size = torch.tensor([entry["width"], entry["height"]] * 2)
        corners = torch.minimum((to_corners(output.boxes[0, image]) * size).clamp(min=0), size)
        scores = output.probabilities()[0, image]
        for box, score, label in zip(found.pred_boxes.tensor, found.scores, found.pred_classes, strict=True):
            same = ((corners - box).abs().amax(1) < 1e-2) & ((scores[:, label] - score).abs() < 1e-6)
            assert same.any()


def test_region_predictions_by_hand():
    """Class-specific boxes: the best class's box counts; fewer regions are padded with boxes without area."""
    predictor, scores, deltas, regions = two_and_one_regions()
    output = region_output(predictor, scores, deltas, regions)
    assert output.activation == "softmax" and output.logits.shape == (1, 2, 2, 6)
    torch.testing.assert_close(output.boxes[0, 0, 0], torch.tensor([30 / 80, 0.25, 0.5, 0.5]))
    torch.testing.assert_close(output.boxes[0, 1, 0], torch.tensor([0.75, 0.75, 0.5, 0.5]))
    assert output.boxes[0, 1, 1].abs().sum() == 0
    assert pairwise_iou(output.boxes[0, 1, 1:], output.boxes[0, 0]).abs().sum() == 0


def test_regions_with_independent_classes_have_none_for_no_object():
    """As in later detectron2, where the last column of a head with sigmoid scores stays and says nothing."""
    predictor, scores, deltas, regions = two_and_one_regions()
    predictor.use_sigmoid_ce = True
    output = region_output(predictor, scores, deltas, regions)
    assert output.activation == "sigmoid" and output.logits.shape == (1, 2, 2, 5)
    assert torch.equal(output.probabilities()[0, 0], scores[:2, :5].sigmoid())


def two_and_one_regions():
    """A head of five classes with a box each, and its predictions for two regions of an image and one of another."""
    predictor = build_model(CASES["faster_rcnn"]()).roi_heads.box_predictor
    regions = [Instances((40, 80), proposal_boxes=Boxes(torch.tensor(boxes))) for boxes in (
        [[0.0, 0, 40, 20], [0, 0, 8, 8]], [[40.0, 20, 80, 40]],
    )]  # fmt: skip
    scores = torch.zeros(3, 6)
    scores[:, 5] = 9.0
    scores[0, 1] = 5.0
    deltas = torch.zeros(3, 20)
    deltas[0, 4:8] = torch.tensor([10.0 / 4, 0, 0, 0])  # class 1: a quarter of the width to the right
    return predictor, scores, deltas, regions


def test_unfit_pairs_are_refused(distiller):
    with pytest.raises(ConfigError, match="Use AdaptiveMatcher"):
        distiller("conditional", "conditional", MODEL__DISTILL__MATCHERS="('OverlapMatcher',)")
    with pytest.raises(ConfigError, match="Use OverlapMatcher"):
        distiller("conditional", "retinanet", MODEL__DISTILL__MATCHERS="('AdaptiveMatcher',)")
    with pytest.raises(ConfigError, match=r"OverlapMatcher pairs predictions, and .* LabelEncoder makes none"):
        distiller("conditional", "retinanet", MODEL__DISTILL__TEACHER__NAME="LabelEncoder")
    with pytest.raises(ConfigError, match=r"predicts 5 classes and MODEL.DISTILL.TEACHER.CLASS_NAMES names 2"):
        distiller("retinanet", "conditional", MODEL__DISTILL__TEACHER__CLASS_NAMES="['a', 'b']")
    with pytest.raises(ConfigError, match="GeneralMatcher"):
        distiller("retinanet", "conditional", MODEL__DISTILL__MATCHERS="('GeneralMatcher',)")
    cascade = build_model(CASES["cascade_rcnn"]())
    with pytest.raises(ConfigError, match="CascadeROIHeads"), listening(cascade.roi_heads, True):
        pass
