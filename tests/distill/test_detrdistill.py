"""DETRDistill: class scores of the teacher's positives alone, and its assignment as a prior of a query group."""

from __future__ import annotations

import math

from detr_distill.detr.boxes import to_corners
from detr_distill.detr.preprocess import normalised_targets
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge, Match
from detr_distill.distill.loss_prediction import PredictionLoss
from detr_distill.distill.students import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.pairs import Pairs
from detr_distill.structures import DecoderOutput

import pytest
import torch
from builders import ROOT, make_inputs
from distill.test_distiller import ReadCounter
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

CLASSES = match_classes(None, None, 2, 2)
BOXES = [[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.6, 0.4, 0.2, 0.2]]
ONE_TO_ONE = [0, 1, 2]
DETRDISTILL = {
    "MODEL__DISTILL__LOSSES": ["PredictionLoss", "QueryRelationLoss"],
    "MODEL__DISTILL__FIXED_MATCHER__TEACHER_ASSIGNMENT": "all",
    "MODEL__DISTILL__PREDICTION_LOSS__GROUPS": ["adaptive"],
    "MODEL__DISTILL__PREDICTION_LOSS__DIVERGENCE": "kl",
    "MODEL__DISTILL__PREDICTION_LOSS__CLASS_TARGETS": "positives",
    "MODEL__DISTILL__PREDICTION_LOSS__BOX_SCORE_THRESHOLD": 0.0,
    "MODEL__DISTILL__PREDICTION_LOSS__NORMALIZER": "pairs",
    "MODEL__DISTILL__QUERY_RELATION_LOSS__GROUPS": ["adaptive"],
}


def logit(p):
    return math.log(p / (1 - p))


def output(scores, boxes):
    """Layers of one image, from class probabilities (L, Q, K) and boxes (Q, 4)."""
    logits = torch.tensor(scores, dtype=torch.float32).logit()[:, None].requires_grad_()
    boxes = torch.tensor(boxes)[None, None].repeat(len(scores), 1, 1, 1).requires_grad_()
    return DecoderOutput(logits, boxes, torch.zeros(*logits.shape[:3], 1), "sigmoid")


def pairs(query, target, weight):
    """Rows a layer, of one image."""
    return Pairs(*(torch.tensor(rows)[:, None] for rows in (query, target)), torch.tensor(weight)[:, None].float())


def prediction_losses(student, teacher, assignment, match_pairs, teacher_layer=(0,), group="own", **options):
    settings = {"kind": "bce", "box_score_threshold": 0.0, "normalizer": "pairs", "class_targets": "positives"}
    weights = {"weight_class": 1.0, "weight_l1": 5.0, "weight_giou": 2.0}
    loss = PredictionLoss(classes=CLASSES, **weights, **{**settings, **options})
    assert loss.needs_assignment == ({**settings, **options}["class_targets"] == "positives")
    match = Match("adaptive", "own", teacher_layer, match_pairs, group)
    knowledge = Knowledge(output=teacher, assignment=assignment, further={"general": teacher})
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
    found = prediction_losses(student, teacher, assignment, match_pairs, kind="kl", temperature=temperature)["class"]
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
    student, teacher, assignment, match_pairs = three_queries()
    with pytest.raises(ConfigError, match="CLASS_TARGETS is 'some'"):
        prediction_losses(student, teacher, None, match_pairs, class_targets="some")


def seen_knowledge(model, inputs):
    """What the losses were given in a step, and the step's losses."""
    seen = []
    for loss in model.losses.values():
        loss.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[1]))
    losses = model(inputs)
    return seen, losses


def test_a_step_solves_the_teachers_own_matching(build_distiller, wide_teacher, inputs):
    model = build_distiller(wide_teacher, **DETRDISTILL)
    seen, losses = seen_knowledge(model, inputs)
    assignment, cost = seen[0].assignment, seen[0].label_cost
    assert losses["loss_distill_class_adaptive"] > 0
    for layer in range(3):
        for image, entry in enumerate(inputs):
            count = len(entry["instances"])
            rows, columns = linear_sum_assignment(cost[layer, image, :, :count].numpy())
            assert assignment.query[layer, image, :count].tolist() == rows.tolist()
            assert assignment.target[layer, image, :count].tolist() == columns.tolist()
            assert assignment.weight[layer, image].sum() == count
            marked = assignment.has_query(9)[layer, image].nonzero().flatten()
            assert marked.tolist() == rows.tolist()
    alone = build_distiller(wide_teacher, **{**DETRDISTILL, "MODEL__DISTILL__PREDICTION_LOSS__CLASS_TARGETS": "all"})
    seen, _ = seen_knowledge(alone, inputs)
    assert seen[0].assignment is None, "solved only where a loss asks for it"


def test_a_step_reads_the_device_once(build_distiller, wide_teacher, monkeypatch):
    model, inputs = build_distiller(wide_teacher, **DETRDISTILL), make_inputs()
    reads, to_host = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (reads.append("cpu"), to_host(self))[1])
    with ReadCounter() as counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads + counter.reads == ["cpu"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_without_objects(build_distiller, wide_teacher):
    model = build_distiller(wide_teacher, **DETRDISTILL)
    losses = model(make_inputs(counts=(0, 0)))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_distill_class_adaptive"] == 0 and losses["loss_distill_box_adaptive"] > 0


def impose(model, cost):
    """Gives the teacher another matching cost (Lt, B, Qt, G)."""
    original = model.teacher.forward

    def forward(*arguments):
        knowledge = original(*arguments)
        knowledge.label_cost = cost.clone()
        return knowledge

    model.teacher.forward = forward


def group_losses(output, targets, chosen, cfg_weights=(6.0, 2.0, 1.0)):
    """Class, L1 and GIoU losses by their formulas, where query ``chosen[layer][image][g]`` has object g."""
    num_objects = sum(targets.counts)
    losses = []
    for layer in range(len(output.logits)):
        wanted = torch.zeros_like(output.logits[layer])
        distance = giou = 0.0
        for image, count in enumerate(targets.counts):
            for thing in range(count):
                query = chosen[layer][image][thing]
                wanted[image, query, targets.labels[image, thing]] = 1
                pred, goal = output.boxes[layer, image, query], targets.boxes[image, thing]
                distance += (pred - goal).abs().sum()
                giou += 1 - generalized_box_iou(to_corners(pred)[None], to_corners(goal)[None])[0, 0]
        p = output.logits[layer].sigmoid()
        focal = -(0.25 * wanted * (1 - p) ** 2 * p.log() + 0.75 * (1 - wanted) * p**2 * (1 - p).log())
        terms = (focal.sum(), distance, giou)
        losses.append([weight * term / num_objects for weight, term in zip(cfg_weights, terms, strict=True)])
    return losses


def test_the_teachers_labels_are_the_ones_used_on_every_layer(build_distiller, wide_teacher, inputs):
    """Whatever the teacher assigns, layer by layer, the group's losses are those of these labels, by hand."""
    model = build_distiller(
        wide_teacher,
        MODEL__DISTILL__MATCHERS=["FixedMatcher"],
        MODEL__DISTILL__LOSSES=[],
        MODEL__DISTILL__FIXED_MATCHER__TEACHER_ASSIGNMENT="all",
    )
    assert list(model.matchers) == ["FixedMatcher"] and not model.losses, "its loss weight alone is reason to build it"
    outputs, passes, decode = [], [], model.student.decode
    model.student.decode = lambda *arguments: outputs.append(decode(*arguments)) or outputs[-1]
    model.student.decoder.register_forward_hook(lambda *_arguments: passes.append(1))
    sizes = [tuple(entry["image"].shape[-2:]) for entry in inputs]
    targets = normalised_targets([entry["instances"] for entry in inputs], sizes, torch.device("cpu"))
    plain = model(inputs)
    results = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        # For each teacher layer and image another query of the 9 for each object.
        order = torch.stack([torch.randperm(9, generator=generator) for _ in range(6)]).view(3, 2, 9)
        cost = torch.ones(3, 2, 9, 3)
        for thing in range(3):
            cost[..., thing].scatter_(2, order[..., thing : thing + 1], -1.0)
        impose(model, cost)
        passes.clear()
        losses = model(inputs)
        assert len(passes) == 1, "one decoder pass serves both groups"
        # The student's two layers learn from the teacher's layers 1 and 2.
        expected = group_losses(outputs[-1]["fixed"], targets, order[1:].tolist())
        for layer, suffix in ((0, "_0"), (1, "")):
            for name, value in zip(("class", "box", "giou"), expected[layer], strict=True):
                assert torch.allclose(losses[f"loss_{name}_fixed{suffix}"], value, rtol=1e-4), (name, layer)
        results.append(losses)
    # Only the group's losses follow the assignment.
    for name, value in plain.items():
        same = [torch.equal(value, result[name]) for result in results]
        assert same == ["fixed" not in name] * 2, name


def test_no_prediction_loss_looks_at_the_group(build_distiller, equal_teacher, inputs):
    losses = build_distiller(equal_teacher, **DETRDISTILL)(inputs)
    assert not [name for name in losses if "distill" in name and "fixed" in name]
    assert {"loss_class_fixed", "loss_class_fixed_0", "loss_distill_query_relation_adaptive"} <= set(losses)


def test_the_configurations_are_the_method():
    """The shipped files name the settings that these tests check."""
    from detr_distill.engine import build_config

    files = sorted((ROOT / "configs").glob("*/*detrdistill*")) + sorted((ROOT / "configs/detrdistill").glob("*.yaml"))
    assert len(files) == 8
    for file in files:
        node = build_config(str(file), []).MODEL.DISTILL
        for key, expected in DETRDISTILL.items():
            found = node
            for part in key.split("__")[2:]:
                found = found[part]
            assert set(expected) <= set(found) if key.endswith("LOSSES") else found == expected, (file.name, key)
        assert list(node.MATCHERS) == ["AdaptiveMatcher", "FixedMatcher"]
