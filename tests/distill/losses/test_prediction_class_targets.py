"""DETRDistill by hand: class scores of the teacher's positives alone, and boxes of all pairs."""

from __future__ import annotations

import math

from detr_distill.detr.boxes import to_corners
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.prediction import PredictionLoss
from detr_distill.distill.match import Match
from detr_distill.distill.students.base import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, Pairs

import pytest
import torch
from helpers.distill.one_image import logit
from torchvision.ops import generalized_box_iou

CLASSES = match_classes(None, None, 2, 2)
BOXES = [[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.6, 0.4, 0.2, 0.2]]
ONE_TO_ONE = [0, 1, 2]


def output(scores, boxes):
    """Layers of one image, from class probabilities (L, Q, K) and boxes (Q, 4)."""
    logits = torch.tensor(scores, dtype=torch.float32).logit()[:, None].requires_grad_()
    boxes = torch.tensor(boxes)[None, None].repeat(len(scores), 1, 1, 1).requires_grad_()
    return DecoderOutput(logits, boxes, torch.zeros(*logits.shape[:3], 1), "sigmoid")


def pairs(query, target, weight):
    """Rows a layer, of one image."""
    return Pairs(*(torch.tensor(rows)[:, None] for rows in (query, target)), torch.tensor(weight)[:, None].float())


def prediction_losses(student, teacher, assignment, match_pairs, teacher_layer=(0,), group="own", **options):
    settings = {"divergence": "bce", "box_score_threshold": 0.0, "normalizer": "pairs", "class_targets": "positives"}
    weights = {"class_weight": 1.0, "l1_weight": 5.0, "giou_weight": 2.0}
    loss = PredictionLoss(classes=CLASSES, **weights, **{**settings, **options})
    assert loss.needs_assignment == ({**settings, **options}["class_targets"] == "positives")
    match = Match("adaptive", "own", teacher_layer, match_pairs, group)
    knowledge = Knowledge(output=teacher, assignment=assignment, extra={"general": teacher})
    found = loss(StudentOutput({}, {"own": student}), knowledge, [match])
    return {name.removeprefix("loss_distill_").replace("_adaptive", ""): value for name, value in found.items()}


def three_queries():
    """The student's queries 0, 1, 2 meet the teacher's 2, 0, 1; the teacher's query 1 alone has an object."""
    student = output([[[0.6, 0.3], [0.5, 0.5], [0.2, 0.7]]], BOXES)
    teacher = output([[[0.1, 0.2], [0.8, 0.1], [0.05, 0.05]]], [[0.3, 0.4, 0.2, 0.2], BOXES[2], BOXES[0]])
    # The last pair of the assignment is padding and must not make query 0 a positive.
    assignment = pairs([[1, 0]], [[0, 0]], [[1, 0]])
    return student, teacher, assignment, pairs([ONE_TO_ONE], [[2, 0, 1]], [[1, 1, 1]])


def entropy(p, t):
    return -(t * math.log(p) + (1 - t) * math.log(1 - p))


def test_positives_by_hand():
    student, teacher, assignment, match_pairs = three_queries()
    found = prediction_losses(student, teacher, assignment, match_pairs)
    # Student's query 2 has the teacher's positive; its term is divided by the one positive, the boxes' by three pairs.
    assert math.isclose(found["class"].item(), entropy(0.2, 0.8) + entropy(0.7, 0.1), rel_tol=1e-5)
    assert math.isclose(found["box"].item(), 5 * 0.1 / 3, rel_tol=1e-5)
    giou = generalized_box_iou(to_corners(torch.tensor([BOXES[1]])), to_corners(torch.tensor([[0.3, 0.4, 0.2, 0.2]])))
    assert math.isclose(found["giou"].item(), 2 * (1 - giou.item()) / 3, rel_tol=1e-4)


def test_negatives_teach_boxes_alone():
    student, teacher, assignment, match_pairs = three_queries()
    sum(prediction_losses(student, teacher, assignment, match_pairs).values()).backward()
    assert (student.logits.grad[0, 0].abs().amax(-1) > 0).tolist() == [False, False, True]
    assert student.boxes.grad[0, 0, 1].abs().max() > 0


def test_all_queries_form_by_hand():
    student, teacher, _, match_pairs = three_queries()
    found = prediction_losses(student, teacher, None, match_pairs, class_targets="all")
    goals = [[0.05, 0.05], [0.1, 0.2], [0.8, 0.1]]
    scores = [[0.6, 0.3], [0.5, 0.5], [0.2, 0.7]]
    expected = sum(
        entropy(p, t) for row, goal in zip(scores, goals, strict=True) for p, t in zip(row, goal, strict=True)
    )
    assert math.isclose(found["class"].item(), expected / 3, rel_tol=1e-5)
    assert math.isclose(found["box"].item(), 5 * 0.1 / 3, rel_tol=1e-5)


def test_teacher_scores_of_the_positives_divide_the_class_term():
    student, teacher, assignment, match_pairs = three_queries()
    counted = prediction_losses(student, teacher, assignment, match_pairs)
    scored = prediction_losses(student, teacher, assignment, match_pairs, normalizer="teacher_score")
    assert torch.equal(scored["class"], counted["class"]), "0.8 of the one positive, but at least 1"
    assert torch.allclose(scored["box"], counted["box"] * 3 / 1.05), "0.05 + 0.2 + 0.8"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_with_a_temperature_by_hand(temperature):
    student, teacher, assignment, match_pairs = three_queries()
    found = prediction_losses(student, teacher, assignment, match_pairs, divergence="kl", temperature=temperature)[
        "class"
    ]
    soft = [[1 / (1 + math.exp(-logit(p) / temperature)) for p in row] for row in ([0.2, 0.7], [0.8, 0.1])]
    expected = sum(entropy(p, t) - entropy(t, t) for p, t in zip(*soft, strict=True))
    assert math.isclose(found.item(), temperature**2 * expected, rel_tol=1e-4)


def test_each_teacher_layer_has_positives_of_its_own():
    scores = [[[0.6, 0.3], [0.5, 0.5]]] * 2
    student, teacher = output(scores, BOXES[:2]), output([[[0.9, 0.1], [0.2, 0.9]]] * 2, BOXES[:2])
    assignment = pairs([[0], [1]], [[0], [0]], [[1], [1]])
    match_pairs = pairs([[0, 1]] * 2, [[0, 1]] * 2, [[1, 1]] * 2)
    first, second = (entropy(0.6, 0.9) + entropy(0.3, 0.1), entropy(0.5, 0.2) + entropy(0.5, 0.9))
    for teacher_layer, expected in (((0, 1), (first, second)), ((1, 1), (second, second))):
        found = prediction_losses(student, teacher, assignment, match_pairs, teacher_layer)
        assert math.isclose(found["class_0"].item(), expected[0], rel_tol=1e-5)
        assert math.isclose(found["class"].item(), expected[1], rel_tol=1e-5)


def test_without_objects_there_is_no_class_term():
    student, teacher, _, match_pairs = three_queries()
    nothing = Pairs(*(torch.zeros(1, 1, 0, dtype=torch.long) for _ in range(2)), torch.zeros(1, 1, 0))
    found = prediction_losses(student, teacher, nothing, match_pairs)
    sum(found.values()).backward()
    assert found["class"] == 0 and found["box"] > 0 and student.logits.grad.abs().max() == 0


def test_surplus_queries_get_no_target():
    """Two pairs and one of padding, with which the student's query 2 and its teacher's positive would meet."""
    student, teacher, assignment, _ = three_queries()
    found = prediction_losses(student, teacher, assignment, pairs([ONE_TO_ONE], [[2, 0, 1]], [[1, 1, 0]]))
    sum(found.values()).backward()
    assert found["class"] == 0
    assert student.logits.grad[0, 0, 2].abs().max() == 0 and student.boxes.grad[0, 0, 2].abs().max() == 0
    assert math.isclose(found["box"].item(), 5 * 0.1 / 2, rel_tol=1e-5)


def test_class_targets_that_are_unknown_are_refused():
    student, teacher, _, match_pairs = three_queries()
    with pytest.raises(ConfigError, match="CLASS_TARGETS is 'some'"):
        prediction_losses(student, teacher, None, match_pairs, class_targets="some")
