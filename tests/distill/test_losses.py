"""Distillation losses against hand-computed values, and the divergences' defining properties."""

from __future__ import annotations

import math

from detr_distill.distill import divergence
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge, Match
from detr_distill.distill.loss_attention import AttentionLoss
from detr_distill.distill.loss_prediction import PredictionLoss
from detr_distill.distill.students import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.pairs import Pairs
from detr_distill.structures import DecoderOutput, Memory

import pytest
import torch

SAME = match_classes(None, None, 2, 2)


def output(logits, boxes, activation="sigmoid", **maps):
    """One layer, one image."""
    logits = torch.tensor(logits, dtype=torch.float32)[None, None].requires_grad_()
    boxes = torch.tensor(boxes, dtype=torch.float32)[None, None]
    return DecoderOutput(logits, boxes, torch.zeros(1, 1, logits.shape[2], 1), activation, **maps)


def match(query, target, weight=None):
    index = [torch.tensor(values)[None, None] for values in (query, target)]
    weight = torch.ones(1, 1, len(query)) if weight is None else torch.tensor(weight)[None, None]
    return Match("adaptive", "own", (0,), Pairs(*index, weight))


def run(loss, student, teacher, pairs, memory=None, shapes=()):
    losses = loss(StudentOutput({}, {"own": student}, memory), Knowledge(output=teacher, memory_shapes=shapes), [pairs])
    return {name.removeprefix("loss_distill_").removesuffix("_adaptive"): value for name, value in losses.items()}


def logit(p):
    return math.log(p / (1 - p))


BOX = [[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]


def test_prediction_loss_by_hand():
    student = output([[logit(0.6), logit(0.3)], [logit(0.5), logit(0.5)]], BOX)
    teacher = output([[logit(0.1), logit(0.2)], [logit(0.8), logit(0.1)]], [[0.9, 0.9, 0.1, 0.1], [0.5, 0.6, 0.2, 0.2]])
    loss = PredictionLoss(classes=SAME, weight_class=2.0, weight_l1=5.0, weight_giou=3.0, weight=0.5)
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
    options = {"box_score_threshold": 0.0, "normalizer": "pairs", "kind": "bce"}
    loss = PredictionLoss(classes=SAME, weight_class=1.0, weight_l1=1.0, weight_giou=0.0, **options)
    found = run(loss, student, teacher, match([0, 1], [0, 1]))
    assert math.isclose(found["box"].item(), 0.4, rel_tol=1e-4)
    assert math.isclose(found["class"].item(), 2 * math.log(2), rel_tol=1e-3)


def test_padded_pairs_and_unmatched_queries_get_no_target():
    teacher = output([[3.0, -3.0], [2.0, 1.0]], BOX)
    loss = PredictionLoss(classes=SAME, weight_class=1.0, weight_l1=1.0, weight_giou=1.0)
    student = output([[0.1, 0.2], [0.3, 0.4]], [BOX[1], BOX[0]])
    sum(run(loss, student, teacher, match([1, 0], [0, 0], [1.0, 0.0])).values()).backward()
    gradient = student.logits.grad[0, 0]
    assert gradient[0].abs().max() == 0 and gradient[1].abs().min() > 0
    empty = run(loss, student, teacher, Match("adaptive", "own", (0,), no_pairs()))
    assert all(value == 0 for value in empty.values())


def no_pairs():
    index = torch.zeros(1, 1, 0, dtype=torch.long)
    return Pairs(index, index, index.float())


@pytest.mark.parametrize("kind", ["focal_bce", "bce", "kl"])
@pytest.mark.parametrize("activations", [("sigmoid", "softmax"), ("softmax", "sigmoid"), ("softmax", "softmax")])
def test_heads_of_either_kind_can_be_paired(kind, activations):
    columns = {"sigmoid": 2, "softmax": 3}
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        output(torch.randn(2, columns[a], generator=generator).tolist(), BOX, activation=a) for a in activations
    )
    loss = PredictionLoss(classes=SAME, weight_class=1.0, weight_l1=1.0, weight_giou=1.0, kind=kind)
    found = run(loss, student, teacher, match([0, 1], [1, 0]))["class"]
    found.backward()
    assert found > 0 and student.logits.grad.isfinite().all() and student.logits.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["focal_bce", "kl"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_equal_predictions_cost_nothing(kind, activation):
    student = output([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], BOX, activation=activation)
    classes = SAME if activation == "softmax" else match_classes(None, None, 3, 3)
    loss = PredictionLoss(
        classes=classes, weight_class=1.0, weight_l1=1.0, weight_giou=1.0, kind=kind, temperature=3.0,
        box_score_threshold=0.0,
    )  # fmt: skip
    found = run(loss, student, student, match([0, 1], [0, 1]))
    assert all(abs(value.item()) < 1e-5 for value in found.values())


EXTREME = [[-20.0, -18.0, -25.0], [3.0, 20.0, -16.0]]


@pytest.mark.parametrize("kind", ["kl", "softmax_kl"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_equal_logits_of_any_size_cost_nothing(kind, activation):
    """Logits are never read back from probabilities that have lost them."""
    student = output(EXTREME, BOX, activation=activation)
    classes = match_classes(None, None, *(2 * [3 if activation == "sigmoid" else 2]))
    loss = PredictionLoss(
        classes=classes, weight_class=1.0, weight_l1=0.0, weight_giou=0.0, kind=kind, temperature=10.0,
        normalizer="pairs",
    )  # fmt: skip
    found = run(loss, student, student, match([0, 1], [0, 1]))["class"]
    found.backward()
    assert abs(found.item()) < 1e-4 and student.logits.grad.abs().max() < 1e-5


def test_softmax_heads_meet_in_their_logits():
    """KD-DETR: the softmax of the shared classes' logits over the temperature, "no object" left out."""
    teacher, student = [[-6.0, -4.0, 9.0]], [[-9.0, -6.0, 9.0]]
    loss = PredictionLoss(
        classes=SAME, weight_class=1.0, weight_l1=0.0, weight_giou=0.0, kind="softmax_kl", temperature=10.0,
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
    loss = PredictionLoss(classes=classes, weight_class=1.0, weight_l1=1.0, weight_giou=1.0)
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


def test_divergences_closed_forms():
    t, p = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert math.isclose(divergence.kl(t, p).item(), math.log(2), rel_tol=1e-6)
    assert divergence.kl(t, t).abs() < 1e-7
    assert math.isclose(divergence.mse(t, p).item(), 2 * 0.0625 + 0.25, rel_tol=1e-6)
    assert divergence.kl(t, torch.tensor([1.0, 0.0, 0.0])).isfinite()
    logits = torch.tensor([0.3, -0.7])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=logits * 2), torch.distributions.Bernoulli(logits=logits)
    ).sum()
    assert torch.allclose(divergence.binary_kl(logits * 2, logits, 1.0), expected, atol=1e-6)
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, -1.0])
    expected = 4 * torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=a / 2), torch.distributions.Categorical(logits=b / 2)
    )
    assert torch.allclose(divergence.softmax_kl(a, b, 2.0), expected, atol=1e-6)


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def attention_case(teacher_queries=3, teacher_heads=2, cells=(2, 3)):
    student = output([[0.0, 0.0]] * 3, [BOX[0]] * 3)
    student.self_attention, student.cross_attention = (random_maps(1, 2, 3, 3),), (random_maps(1, 2, 3, 6, seed=1),)
    teacher = output([[0.0, 0.0]] * teacher_queries, [BOX[0]] * teacher_queries)
    teacher.self_attention = (random_maps(1, teacher_heads, teacher_queries, teacher_queries, seed=2),)
    teacher.cross_attention = (random_maps(1, teacher_heads, teacher_queries, cells[0] * cells[1], seed=3),)
    memory = Memory(torch.zeros(1, 6, 1), torch.zeros(1, 6, 1), None, [(2, 3)])
    return student, teacher, {"memory": memory, "shapes": [cells]}


def test_attention_loss_orders_both_axes_by_the_pairs():
    student, teacher, setting = attention_case()
    order = [2, 0, 1]
    found = run(AttentionLoss(kind="kl"), student, teacher, match([0, 1, 2], order), **setting)
    goal = teacher.self_attention[0][0][:, order][:, :, order]
    expected = (goal * (goal / student.self_attention[0][0]).log()).sum(-1).mean()
    assert torch.allclose(found["self_attention"], expected, atol=1e-5)
    goal = teacher.cross_attention[0][0][:, order]
    expected = (goal * (goal / student.cross_attention[0][0]).log()).sum(-1).mean()
    assert torch.allclose(found["cross_attention"], expected, atol=1e-5)


def test_attention_of_a_permuted_copy_costs_nothing():
    student, _, setting = attention_case()
    order = torch.tensor([2, 0, 1])
    copy = output([[0.0, 0.0]] * 3, [BOX[0]] * 3)
    copy.self_attention = (student.self_attention[0][:, :, order][..., order],)
    copy.cross_attention = (student.cross_attention[0][:, :, order],)
    found = run(AttentionLoss(kind="mse"), student, copy, match([0, 1, 2], torch.argsort(order).tolist()), **setting)
    assert all(value.abs() < 1e-7 for value in found.values())


def test_attention_with_fewer_pairs_is_a_distribution_again():
    student, teacher, setting = attention_case(teacher_queries=2)
    found = run(AttentionLoss(kind="kl", weight_cross=0.0), student, teacher, match([0, 2], [1, 0]), **setting)
    pred = student.self_attention[0][0][:, [0, 2]][:, :, [0, 2]]
    goal = teacher.self_attention[0][0][:, [1, 0]][:, :, [1, 0]]
    pred = pred / pred.sum(-1, keepdim=True)
    assert torch.allclose(found["self_attention"], (goal * (goal / pred).log()).sum(-1).mean(), atol=1e-5)
    assert "cross_attention" not in found


def test_attention_with_other_heads_and_other_memory_grid():
    student, teacher, setting = attention_case(teacher_heads=4, cells=(4, 6))
    found = run(AttentionLoss(), student, teacher, match([0, 1, 2], [0, 1, 2]), **setting)
    assert all(value.isfinite() and value >= 0 for value in found.values())
    teacher.cross_attention = (torch.full((1, 4, 3, 24), 1 / 24),)
    student.cross_attention = (torch.full((1, 2, 3, 6), 1 / 6),)
    found = run(AttentionLoss(), student, teacher, match([0, 1, 2], [0, 1, 2]), **setting)
    assert found["cross_attention"].abs() < 1e-5, "a uniform map stays uniform on another grid"


def test_kl_has_the_gradient_of_its_formula():
    target, prediction = random_maps(2, 3, 5), random_maps(2, 3, 5, seed=1).requires_grad_()
    weight = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((divergence.kl(target, prediction) * weight).sum(), prediction)
    formula = (target * (target.log() - prediction.log())).sum(-1)
    (expected,) = torch.autograd.grad((formula * weight).sum(), prediction)
    assert torch.allclose(found, expected, atol=1e-5)


def test_requires_only_what_has_a_weight():
    assert AttentionLoss(weight_self=0.0).requires == {"cross_attention"}
    assert AttentionLoss().requires == {"self_attention", "cross_attention"}
    assert PredictionLoss(classes=SAME, weight_class=1, weight_l1=1, weight_giou=1).requires == frozenset()
