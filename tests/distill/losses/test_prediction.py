"""The prediction loss by hand: thresholds, padding, heads of either kind, and classes by name."""

from __future__ import annotations

import math

from detr_distill.distill.classes import match_classes
from detr_distill.distill.losses.prediction import PredictionLoss
from detr_distill.distill.match import Match
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, Pairs

import pytest
import torch
from helpers.distill.one_image import BOX, SAME, logit, match, output, run


def test_prediction_loss_by_hand():
    student = output([[logit(0.6), logit(0.3)], [logit(0.5), logit(0.5)]], BOX)
    teacher = output([[logit(0.1), logit(0.2)], [logit(0.8), logit(0.1)]], [[0.9, 0.9, 0.1, 0.1], [0.5, 0.6, 0.2, 0.2]])
    loss = PredictionLoss(classes=SAME, class_weight=2.0, l1_weight=5.0, giou_weight=3.0, weight=0.5)
    found = run(loss, student, teacher, match([0, 1], [1, 0]))

    def focal(p, t):
        return (p - t) ** 2 * -(t * math.log(p) + (1 - t) * math.log(1 - p))

    divisor = max(0.8 + 0.2, 1)
    classes = focal(0.6, 0.8) + focal(0.3, 0.1) + focal(0.5, 0.1) + focal(0.5, 0.2)
    assert math.isclose(found["class"].item(), 0.5 * 2 * classes / divisor, rel_tol=1e-4)
    # Only the first pair's teacher is sure enough for box terms: boxes (.5, .5) and (.5, .6) of side .2.
    assert math.isclose(found["box"].item(), 0.5 * 5 * 0.1 / divisor, rel_tol=1e-4)
    overlap, union, hull = 0.2 * 0.1, 0.08 - 0.02, 0.2 * 0.3
    giou = overlap / union - (hull - union) / hull
    assert math.isclose(found["giou"].item(), 0.5 * 3 * (1 - giou) / divisor, rel_tol=1e-4)


def test_prediction_loss_without_threshold_and_with_pair_count():
    student = output([[0.0, 0.0], [0.0, 0.0]], BOX)
    teacher = output([[-9.0, -9.0], [-9.0, -9.0]], [BOX[1], BOX[0]])
    options = {"box_score_threshold": 0.0, "normalizer": "pairs", "divergence": "bce"}
    loss = PredictionLoss(classes=SAME, class_weight=1.0, l1_weight=1.0, giou_weight=0.0, **options)
    found = run(loss, student, teacher, match([0, 1], [0, 1]))
    assert math.isclose(found["box"].item(), 0.4, rel_tol=1e-4)
    assert math.isclose(found["class"].item(), 2 * math.log(2), rel_tol=1e-3)


def test_padded_pairs_and_unmatched_queries_get_no_target():
    teacher = output([[3.0, -3.0], [2.0, 1.0]], BOX)
    loss = PredictionLoss(classes=SAME, class_weight=1.0, l1_weight=1.0, giou_weight=1.0)
    student = output([[0.1, 0.2], [0.3, 0.4]], [BOX[1], BOX[0]])
    sum(run(loss, student, teacher, match([1, 0], [0, 0], [1.0, 0.0])).values()).backward()
    gradient = student.logits.grad[0, 0]
    assert gradient[0].abs().max() == 0 and gradient[1].abs().min() > 0
    empty = run(loss, student, teacher, Match("adaptive", "own", (0,), no_pairs()))
    assert all(value == 0 for value in empty.values())


def no_pairs():
    index = torch.zeros(1, 1, 0, dtype=torch.long)
    return Pairs(index, index, index.float())


@pytest.mark.parametrize("divergence", ["focal_bce", "bce", "kl"])
@pytest.mark.parametrize("activations", [("sigmoid", "softmax"), ("softmax", "sigmoid"), ("softmax", "softmax")])
def test_heads_of_either_kind_can_be_paired(divergence, activations):
    columns = {"sigmoid": 2, "softmax": 3}
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        output(torch.randn(2, columns[a], generator=generator).tolist(), BOX, activation=a) for a in activations
    )
    loss = PredictionLoss(classes=SAME, class_weight=1.0, l1_weight=1.0, giou_weight=1.0, divergence=divergence)
    found = run(loss, student, teacher, match([0, 1], [1, 0]))["class"]
    found.backward()
    assert found > 0 and student.logits.grad.isfinite().all() and student.logits.grad.abs().max() > 0


@pytest.mark.parametrize("divergence", ["focal_bce", "kl"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_equal_predictions_cost_nothing(divergence, activation):
    student = output([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], BOX, activation=activation)
    classes = SAME if activation == "softmax" else match_classes(None, None, 3, 3)
    loss = PredictionLoss(
        classes=classes, class_weight=1.0, l1_weight=1.0, giou_weight=1.0, divergence=divergence,
        temperature=3.0 if divergence == "kl" else 1.0, box_score_threshold=0.0,
    )  # fmt: skip
    found = run(loss, student, student, match([0, 1], [0, 1]))
    assert all(abs(value.item()) < 1e-5 for value in found.values())


EXTREME = [[-20.0, -18.0, -25.0], [3.0, 20.0, -16.0]]


@pytest.mark.parametrize("divergence", ["kl", "softmax_kl"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_equal_logits_of_any_size_cost_nothing(divergence, activation):
    """Logits are never read back from probabilities that have lost them."""
    student = output(EXTREME, BOX, activation=activation)
    classes = match_classes(None, None, *(2 * [3 if activation == "sigmoid" else 2]))
    loss = PredictionLoss(
        classes=classes, class_weight=1.0, l1_weight=0.0, giou_weight=0.0, divergence=divergence, temperature=10.0,
        normalizer="pairs",
    )  # fmt: skip
    found = run(loss, student, student, match([0, 1], [0, 1]))["class"]
    found.backward()
    assert abs(found.item()) < 1e-4 and student.logits.grad.abs().max() < 1e-5


def test_softmax_heads_meet_in_their_logits():
    """KD-DETR: the softmax of the shared classes' logits over the temperature, "no object" left out."""
    teacher, student = [[-6.0, -4.0, 9.0]], [[-9.0, -6.0, 9.0]]
    loss = PredictionLoss(
        classes=SAME, class_weight=1.0, l1_weight=0.0, giou_weight=0.0, divergence="softmax_kl", temperature=10.0,
        normalizer="pairs",
    )  # fmt: skip
    outputs = (output(logits, BOX[:1], activation="softmax") for logits in (student, teacher))
    found = run(loss, *outputs, match([0], [0]))["class"].item()
    goal, own = ([1 / (1 + math.exp((b - a) / 10)), 1 / (1 + math.exp((a - b) / 10))] for a, b in ((-6, -4), (-9, -6)))
    assert found == pytest.approx(100 * sum(g * math.log(g / o) for g, o in zip(goal, own, strict=True)), rel=1e-4)


def test_scores_of_a_softmax_by_themselves():
    """However improbable a class is, its logit is the one whose sigmoid is its probability."""
    logits = torch.tensor([[30.0, -20.0, 2.0], [0.5, 0.1, -0.3]], dtype=torch.float64)
    exact = torch.logit(logits.softmax(-1)[:, :-1])
    found = DecoderOutput(logits[None, None].float(), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 0), "softmax")
    assert found.score_logits()[0, 0].flatten().tolist()[1:] == pytest.approx(exact.flatten().tolist()[1:], rel=1e-4)
    assert found.score_logits().isfinite().all() and torch.equal(found.class_logits()[0, 0], logits[:, :2].float())


def test_classes_are_compared_by_name():
    classes = match_classes(["cat", "dog"], ["tree", "dog", "cat"], 2, 3)
    student, teacher = output([[1.0, -1.0]], BOX[:1]), output([[9.0, -1.0, 1.0]], BOX[:1])
    loss = PredictionLoss(classes=classes, class_weight=1.0, l1_weight=1.0, giou_weight=1.0)
    assert run(loss, student, teacher, match([0], [0]))["class"].abs() < 1e-6
    assert classes.teacher_labels(torch.tensor([0, 1])).tolist() == [2, 1]
    partial = match_classes(["cat", "bird"], ["cat"], 2, 1)
    assert partial.teacher_labels(torch.tensor([0, 1])).tolist() == [0, -1]
    with pytest.raises(ConfigError, match=r"share no name"):
        match_classes(["cat"], ["dog"], 1, 1)
    with pytest.raises(ConfigError, match=r"CLASS_NAMES"):
        match_classes(None, ["a", "b"], 3, 2)
    with pytest.raises(ConfigError, match=r"predicts 3 classes"):
        match_classes(["a", "b"], ["a", "b"], 3, 2)


def test_softmax_kl_compares_the_shared_classes_alone():
    """Lists a, b, c and c, x, a, y: equal in a and c, whatever the others say."""
    classes = match_classes(["a", "b", "c"], ["c", "x", "a", "y"], 3, 4)
    student, teacher = output([[1.0, 9.0, -2.0]], BOX[:1]), output([[-2.0, 7.0, 1.0, -8.0]], BOX[:1])
    loss = PredictionLoss(classes=classes, class_weight=1.0, l1_weight=0.0, giou_weight=0.0, divergence="softmax_kl")
    assert run(loss, student, teacher, match([0], [0]))["class"].abs() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_has_the_gradient_of_kl(temperature):
    gradients, values = [], []
    for divergence in ("bce", "kl"):
        student = output([[1.0, -2.0], [0.3, 0.1]], BOX)
        loss = PredictionLoss(
            classes=SAME, class_weight=1.0, l1_weight=0.0, giou_weight=0.0, divergence=divergence,
            temperature=temperature,
        )  # fmt: skip
        found = run(loss, student, output([[2.0, 0.5], [-1.0, 3.0]], BOX), match([0, 1], [1, 0]))["class"]
        found.backward()
        values.append(found.item())
        gradients.append(student.logits.grad)
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 0.01
    assert values[0] > values[1] + 0.1
    with pytest.raises(ConfigError, match=r"TEMPERATURE is 4.0, and DIVERGENCE 'focal_bce'"):
        PredictionLoss(classes=SAME, class_weight=1.0, l1_weight=1.0, giou_weight=1.0, temperature=4.0)
