"""Distributions of edges: by hand, the same on both sides, other numbers of bins, and from a D-FINE to a D-FINE."""

from __future__ import annotations

from detr_distill.distill.classes import same_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses import LocalizationLoss
from detr_distill.distill.match import Match
from detr_distill.distill.students import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, EdgeDistributions, Pairs

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.hugging_face import student_keys, taught_by_dfine

LAYERS, IMAGES, QUERIES, CLASSES, BINS = 2, 2, 5, 3, 7


def output(seed):
    torch.manual_seed(seed)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4) * 0.3 + 0.3
    edges = EdgeDistributions(torch.randn(LAYERS, IMAGES, QUERIES, 4, BINS), boxes)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES)
    return DecoderOutput(logits, boxes, logits, "sigmoid", edges=edges)


def terms(student, teacher, **settings):
    loss = LocalizationLoss(bins=((), ()), classes=same_classes(CLASSES), **settings)
    query = torch.tensor([[[0, 3, 2], [4, 1, 0]]]).expand(LAYERS, -1, -1)
    target = torch.tensor([[[2, 2, 1], [0, 3, 4]]]).expand(LAYERS, -1, -1)
    weight = torch.tensor([[[1.0, 1, 1], [1, 1, 0]]]).expand(LAYERS, -1, -1)
    pairs = Pairs(query, target, weight)
    match = Match("adaptive", "own", (0, 1), pairs)
    found = loss.terms(StudentOutput({}, {"own": student}), Knowledge(output=teacher), match)
    return found["edges"], pairs


def overlap(first, second):
    """IoU of two boxes of centre and size, in plain numbers."""
    a, b = ([x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in (first.tolist(), second.tolist()))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_it_is_the_sum_by_hand():
    student, teacher, temperature = output(0), output(1), 3.0
    found, pairs = terms(student, teacher, temperature=temperature)
    for layer in range(LAYERS):
        total, divisor = 0.0, 0.0
        for image in range(IMAGES):
            for pair in range(3):
                q, t = pairs.query[layer, image, pair], pairs.target[layer, image, pair]
                p = (student.edges.logits[layer, image, q] / temperature).softmax(-1)
                goal = (teacher.edges.logits[layer, image, t] / temperature).softmax(-1)
                iou = overlap(student.edges.references[layer, image, q], teacher.edges.references[layer, image, t])
                score = teacher.logits[layer, image, t].sigmoid().max() * pairs.weight[layer, image, pair]
                total += score * iou * temperature**2 * (goal * (goal / p).log()).sum()
                divisor += score
        assert torch.allclose(found[layer], total / max(1, divisor), rtol=1e-4)


def test_a_student_that_says_the_same_has_no_loss():
    student, teacher = output(0), output(1)
    student.edges.logits = student.edges.logits * 0 + teacher.edges.logits[:1, :1, :1]
    teacher.edges.logits = teacher.edges.logits * 0 + student.edges.logits[:1, :1, :1]
    assert torch.allclose(terms(student, teacher)[0], torch.zeros(LAYERS), atol=1e-5)


def test_other_numbers_of_bins_are_refused():
    with pytest.raises(ConfigError, match=r"of the student are \(16, 0.5, 4.0\), of the teacher \(32, 0.5, 4.0\)"):
        LocalizationLoss(bins=((16, 0.5, 4.0), (32, 0.5, 4.0)), classes=same_classes(3))


def test_a_dfine_teaches_a_dfine(tmp_path):
    pytest.importorskip("transformers")
    keys = {**taught_by_dfine(tmp_path), "MODEL__DISTILL__LOSSES": ["LocalizationLoss"]}
    model = randomise(build_model(small_cfg(**keys)), seed=1, spread=0.1).train()
    losses = model(make_inputs(), iteration=0)
    found = [value for name, value in losses.items() if name.startswith("loss_distill_edges_adaptive")]
    assert len(found) == 3 and all(value > 0 for value in found)
    sum(found).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.student.model.bbox_embed[0].parameters())
    distilling = {"MODEL__META_ARCHITECTURE": "DistillDetector"}
    with pytest.raises(ConfigError, match=r"LocalizationLoss asks for distributions.*RTDetrV2.*take a D-FINE"):
        build_model(small_cfg(**{**keys, **student_keys(tmp_path, "rt_detr_v2"), **distilling}))
