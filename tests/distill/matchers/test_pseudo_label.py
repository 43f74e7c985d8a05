"""A teacher's confident detections as labels, against loops and SciPy."""

from __future__ import annotations

import dataclasses

from detr_distill.distill.match import LabelMatch
from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.builders import make_inputs
from helpers.distill.families import CONDITIONAL, TWO_STAGE, distiller
from scipy.optimize import linear_sum_assignment

THRESHOLD = 0.45
KEYS = {
    "DISTILL__MATCHERS": ["PseudoLabelMatcher"],
    "DISTILL__LOSSES": ["PseudoLabelLoss"],
    "DISTILL__PSEUDO_LABEL_MATCHER__SCORE_THRESHOLD": THRESHOLD,
    "DISTILL__PSEUDO_LABEL_MATCHER__COPIES": 2,
    "DISTILL__PSEUDO_LABEL_MATCHER__ONE_TO_MANY_UNTIL": 5.0,
}


def teach(folder, teacher=CONDITIONAL, student=CONDITIONAL, **keys):
    return distiller(folder, teacher, student, unlabeled=1, **{**KEYS, **keys})


def inputs():
    """Two images with labels and one without."""
    batch = make_inputs(((40, 56), (40, 56), (40, 56)), (2, 3, 2))
    return [*batch[:2], {key: value for key, value in batch[2].items() if key != "instances"}]


def two_sure(_, given, knowledge):
    """In place of what the random teacher saw: two sure detections in each image, and others all over it."""
    output = knowledge.output
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(output.logits.shape, generator=generator) - 3
    logits[..., 1, 4], logits[..., 4, 2] = 1.0, 2.0
    boxes = torch.rand(output.boxes.shape, generator=generator) * 0.5 + 0.2
    return dataclasses.replace(knowledge, output=dataclasses.replace(output, logits=logits, boxes=boxes))


def step(model, iteration):
    """The losses of a step, the student's output, the teacher's, and the matches."""
    seen = {}
    model.teacher.register_forward_hook(two_sure)
    for matcher in model.matchers.values():
        matcher.register_forward_hook(lambda _, given, match: seen.update(given=given, match=match))
    torch.manual_seed(0)
    losses = model(inputs(), iteration=iteration)
    student, knowledge, _ = seen["given"]
    return losses, student.outputs["own"], knowledge.output, seen["match"]


def confident(teacher):
    """(score, class, box) of the last image's detections from the threshold on, the best first."""
    scores, boxes = teacher.probabilities()[-1, 2], teacher.boxes[-1, 2]
    found = [(*max((float(s), c) for c, s in enumerate(row)), box) for row, box in zip(scores, boxes, strict=True)]
    return sorted((item for item in found if item[0] >= THRESHOLD), key=lambda item: -item[0])


@pytest.mark.parametrize(("iteration", "copies"), [(0, 2), (4, 2), (5, 1)])
def test_pairs_are_the_cheapest_with_each_detection_repeated(tmp_path, iteration, copies):
    model = teach(tmp_path)
    _, student, teacher, match = step(model, iteration)
    objects = confident(teacher)
    assert len(objects) == 2
    cost = model.student.criterion.matcher
    for layer in range(len(student.logits)):
        values = []
        for query in range(student.logits.shape[2]):
            p = student.logits[layer, 2, query].detach().sigmoid()
            box = student.boxes[layer, 2, query].detach()
            row = []
            for _, label, target in objects:
                positive = -0.25 * (1 - p[label]) ** 2 * p[label].log()
                negative = -0.75 * p[label] ** 2 * (1 - p[label]).log()
                distance = (box - target).abs().sum()
                row.append(
                    cost.cost_class * (positive - negative)
                    + cost.cost_l1 * distance
                    - cost.cost_giou * generalized_iou(box.tolist(), target.tolist())
                )
            values.append([float(value) for value in row for _ in range(copies)])
        rows, columns = linear_sum_assignment(torch.tensor(values).numpy())
        best = sum(values[row][column] for row, column in zip(rows, columns, strict=True))
        real = match.pairs.weight[layer, 2] > 0
        found = match.pairs.query[layer, 2][real].tolist(), match.pairs.target[layer, 2][real].tolist()
        assert len(found[0]) == len(set(found[0])) == len(objects) * copies
        assert sum(values[q][t] for q, t in zip(*found, strict=True)) == pytest.approx(best, rel=1e-4)


def generalized_iou(first, second):
    (ax, ay, aw, ah), (bx, by, bw, bh) = first, second
    a, b = (ax - aw / 2, ay - ah / 2, ax + aw / 2, ay + ah / 2), (bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = aw * ah + bw * bh - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (hull - union) / hull


def test_the_loss_is_that_of_labels(tmp_path):
    """Each query's focal terms over all classes, boxes of the pairs, divided by the objects, of the last layer."""
    model = teach(tmp_path)
    losses, student, _, match = step(model, 0)
    assert isinstance(match, LabelMatch)
    criterion = model.student.criterion
    logits, boxes = student.logits[-1, 2], student.boxes[-1, 2]
    wanted = torch.zeros_like(logits)
    distance = giou = torch.tensor(0.0)
    count = 0
    for query, target, weight in zip(
        *(x[-1, 2] for x in (match.pairs.query, match.pairs.target, match.pairs.weight)), strict=True
    ):
        if weight:
            wanted[query, match.targets.labels[2, target]] = 1
            truth = match.targets.boxes[2, target]
            distance = distance + (boxes[query] - truth).abs().sum()
            giou = giou + 1 - generalized_iou(boxes[query].tolist(), truth.tolist())
            count += 1
    p = logits.sigmoid()
    focal = -(0.25 * wanted * (1 - p) ** 2 * p.log() + 0.75 * (1 - wanted) * p**2 * (1 - p).log()).sum()
    expected = {
        "class": criterion.class_weight * focal / count,
        "box": criterion.l1_weight * distance / count,
        "giou": criterion.giou_weight * giou / count,
    }
    for name, value in expected.items():
        assert float(losses[f"loss_distill_{name}_pseudo_unlabeled"]) == pytest.approx(float(value), rel=1e-4), name


def test_labelled_images_and_unsure_detections_teach_nothing(tmp_path):
    model = teach(tmp_path, DISTILL__PSEUDO_LABEL_MATCHER__SCORE_THRESHOLD=0.999)
    losses, student, _, match = step(model, 0)
    assert not match.pairs.weight.any()
    assert losses["loss_distill_box_pseudo_unlabeled"] == 0
    p = student.logits[-1, 2].sigmoid()
    nothing = -(0.75 * p**2 * (1 - p).log()).sum() * model.student.criterion.class_weight
    assert float(losses["loss_distill_class_pseudo_unlabeled"]) == pytest.approx(float(nothing), rel=1e-4)
    assert not [name for name in losses if "pseudo" in name and not name.endswith("_unlabeled")]


def test_a_two_stage_student_and_a_loss_of_pairs_beside_it(tmp_path):
    keys = {
        "DISTILL__MATCHERS": ["AdaptiveMatcher", "PseudoLabelMatcher"],
        "DISTILL__LOSSES": ["PredictionLoss", "PseudoLabelLoss"],
    }
    losses = teach(tmp_path, student=TWO_STAGE, **keys)(inputs(), iteration=0)
    assert {"loss_distill_class_adaptive", "loss_distill_class_pseudo_unlabeled"} <= losses.keys()
    assert not [name for name in losses if "distill_class_pseudo" in name and "unlabeled" not in name]
    sum(losses.values()).backward()


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"UNLABELED_PER_BATCH is 0"):
        distiller(tmp_path, CONDITIONAL, CONDITIONAL, **KEYS)
    with pytest.raises(ConfigError, match=r"no matcher finds objects.*: PseudoLabelMatcher\."):
        teach(tmp_path, DISTILL__MATCHERS=["AdaptiveMatcher"])
    with pytest.raises(ConfigError, match=r"PREDICTION_LOSS.GROUPS is \[\] and the matchers in use give no pairs"):
        teach(tmp_path, DISTILL__LOSSES=["PredictionLoss", "PseudoLabelLoss"])
    model = teach(tmp_path)
    with pytest.raises(ConfigError, match="ONE_TO_MANY_UNTIL"):
        model(inputs())
