"""Distillation between detectors of different kinds: every family teaches and learns with all that the pair can use."""

from __future__ import annotations

from detr_distill.detr.layers.deformable import DeformableAttention
from detr_distill.distill.matchers.layer_pairs import pair_layers
from detr_distill.registry import DECODER_REGISTRY, QUERIES_REGISTRY
from detr_distill.structures import CROSS_ATTENTION, SAMPLED_ATTENTION, SELF_ATTENTION

import pytest
import torch
from helpers.builders import make_inputs
from helpers.distill.families import (
    ADAMIXER,
    CONDITIONAL,
    DAB,
    DEFORMABLE,
    DETR,
    LARGER,
    NAMES,
    TWO_STAGE,
    detector,
    distiller,
    shared_captures,
    step,
)
from scipy.optimize import linear_sum_assignment


def check_losses(model, losses, captures):
    """Every term of every matcher and layer is there and finite, and reaches every parameter."""
    terms = {"class", "box", "giou", *captures}
    layers = ["", *(f"_{layer}" for layer in range(len(model.student.decoder.layers) - 1))]
    expected = {f"loss_distill_{t}_{m}{s}" for t in terms for m in ("adaptive", "fixed") for s in layers}
    assert {name for name in losses if "distill" in name} == expected
    assert {f"loss_{term}_fixed{s}" for term in ("class", "box", "giou") for s in layers} <= set(losses)
    assert not [name for name, value in losses.items() if not value.isfinite() or value.dim()]
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def check_pairs(model, seen):
    """Adaptive pairs solve their cost, one to one; fixed pairs join query i with i, for all the teacher has."""
    student, knowledge, adaptive = seen["adaptive"]
    own, goal = student.outputs["own"].logits, knowledge.output.logits
    cost = model.matchers["AdaptiveMatcher"].cost(student, knowledge).values
    for layer, image in ((0, 1), (len(own) - 1, 0)):
        rows, columns = linear_sum_assignment(cost[layer, image].detach().numpy())
        assert adaptive.pairs.query[layer, image].tolist() == rows.tolist()
        assert adaptive.pairs.target[layer, image].tolist() == columns.tolist()
    assert adaptive.pairs.weight.shape == (len(own), 2, min(own.shape[2], goal.shape[2]))
    fixed = seen["fixed"][2]
    assert torch.equal(fixed.pairs.query, fixed.pairs.target) and fixed.pairs.query.shape[2] == goal.shape[2]
    assert adaptive.teacher_layer == fixed.teacher_layer == pair_layers(len(own), len(goal), "aligned")


def all_pairs() -> list[tuple[str, str]]:
    """Every family as teacher and as student, twice, of and with different others; and pairs of note."""
    count = len(NAMES)
    pairs = [(NAMES[i], NAMES[(i + shift) % count]) for shift in (1, count // 2) for i in range(count)]
    noted = [
        (DEFORMABLE, CONDITIONAL), (CONDITIONAL, DEFORMABLE), (TWO_STAGE, CONDITIONAL), (CONDITIONAL, TWO_STAGE),
        (ADAMIXER, DEFORMABLE), (DETR, DAB), (DAB, DETR), (TWO_STAGE, DEFORMABLE),
    ]  # fmt: skip
    return list(dict.fromkeys(pairs + noted))


def test_every_registered_class_has_a_family():
    for place, registry in enumerate((DECODER_REGISTRY, QUERIES_REGISTRY)):
        assert {name.split("/")[place] for name in NAMES} >= {name for name, _ in registry}, "a shipped file is missing"


@pytest.mark.parametrize(("teacher", "student"), all_pairs(), ids=lambda name: name.split("/")[1])
def test_step_and_evaluation(teacher, student, tmp_path):
    model = distiller(tmp_path, teacher, student, LARGER)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(teacher, student))
    check_pairs(model, seen)
    with torch.no_grad():
        for result in model.eval()(make_inputs(labels=False)):
            assert len(result["instances"]) and result["instances"].scores.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_decoder_captures(name):
    """Self-attention all; points those that sample by attention, dense maps those that do not sample."""
    decoder = detector(name).decoder
    samples = any(isinstance(module, DeformableAttention) for module in decoder.modules())
    assert SELF_ATTENTION in decoder.captures and (SAMPLED_ATTENTION in decoder.captures) == samples
    assert not {CROSS_ATTENTION, SAMPLED_ATTENTION} <= decoder.captures


def test_more_queries_than_the_student(tmp_path):
    model = distiller(tmp_path, DAB, DAB, {"DETR__NUM_QUERIES": 90}, DETR__NUM_QUERIES=30)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(DAB))
    check_pairs(model, seen)
    assert seen["adaptive"][2].pairs.query.shape[2] == 30 and seen["fixed"][2].pairs.query.shape[2] == 90


def test_twice_the_layers_and_the_width(tmp_path):
    teacher = {"DETR__DECODER__NUM_LAYERS": 6, "DETR__HIDDEN_DIM": 64}
    model = distiller(tmp_path, DEFORMABLE, DEFORMABLE, teacher, DETR__DECODER__NUM_LAYERS=3)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(DEFORMABLE))
    check_pairs(model, seen)
    assert seen["fixed"][2].teacher_layer == (1, 3, 5)


def test_batch_without_objects(tmp_path):
    model = distiller(tmp_path, TWO_STAGE, CONDITIONAL)
    losses, seen = step(model, counts=(0, 0))
    check_losses(model, losses, shared_captures(TWO_STAGE, CONDITIONAL))
    check_pairs(model, seen)


@pytest.mark.parametrize(("teacher", "student"), [(DETR, CONDITIONAL), (CONDITIONAL, TWO_STAGE)])
def test_a_subset_of_the_classes_in_another_order(tmp_path, named_sets, teacher, student):
    """Classes that the student does not have are not taught; those that it has are found by name."""
    keys = {"datasets": named_sets, "DETR__NUM_CLASSES": 4}
    model = distiller(tmp_path, teacher, student, {"DETR__NUM_CLASSES": 8}, **keys)
    classes = model.teacher.classes
    assert (classes.student, classes.teacher) == ((0, 1, 3), (6, 1, 3))
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(teacher, student))
    check_pairs(model, seen)
    head = model.teacher.detector.decoder.heads.class_head
    changed = []
    for known in (0, 6):
        saved = head.bias.data.clone()
        head.bias.data[known] += 1.0
        after = model(make_inputs())
        changed.append(
            [name for name in after if "_class_adaptive" in name and not torch.equal(after[name], losses[name])]
        )
        head.bias.data.copy_(saved)
    # A softmax teacher's other classes share one unit of probability.
    assert changed[1] and bool(changed[0]) == (teacher == DETR)
