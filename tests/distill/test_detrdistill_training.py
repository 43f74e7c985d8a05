"""DETRDistill's training step: the teacher's assignment as a prior of a query group, and the shipped files."""

from __future__ import annotations

from detr_distill.detr.boxes import to_corners
from detr_distill.detr.preprocess import read_ground_truth

import torch
from helpers.builders import ROOT, make_inputs
from helpers.host_reads import host_reads
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

# What makes the method; the small forms for digits take another divergence, divisor and weight of pairs.
METHOD = {
    "MODEL__DISTILL__LOSSES": ["PredictionLoss", "QueryRelationLoss"],
    "MODEL__DISTILL__FIXED_MATCHER__TEACHER_ASSIGNMENT": "all",
    "MODEL__DISTILL__PREDICTION_LOSS__GROUPS": ["adaptive"],
    "MODEL__DISTILL__PREDICTION_LOSS__CLASS_TARGETS": "positives",
    "MODEL__DISTILL__PREDICTION_LOSS__BOX_SCORE_THRESHOLD": 0.0,
    "MODEL__DISTILL__QUERY_RELATION_LOSS__GROUPS": ["adaptive"],
}
DETRDISTILL = {
    **METHOD,
    "MODEL__DISTILL__PREDICTION_LOSS__DIVERGENCE": "kl",
    "MODEL__DISTILL__PREDICTION_LOSS__NORMALIZER": "pairs",
    "MODEL__DISTILL__PREDICTION_LOSS__PAIR_WEIGHT": "equal",
}


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
    assignment, cost = seen[0].assignment, seen[0].matching_cost()
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


def test_a_step_reads_the_device_once(build_distiller, wide_teacher):
    model, inputs = build_distiller(wide_teacher, **DETRDISTILL), make_inputs()
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
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
    targets = read_ground_truth(inputs, "cpu")
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

    published, digits = (
        sorted((ROOT / "configs").glob(name)) for name in ("detrdistill/*.yaml", "digits/detrdistill*")
    )
    assert len(published) == 6 and len(digits) == 3
    for file in published + digits:
        node = build_config(str(file), []).MODEL.DISTILL
        for key, expected in (METHOD if file in digits else DETRDISTILL).items():
            found = node
            for part in key.split("__")[2:]:
                found = found[part]
            assert set(expected) <= set(found) if key.endswith("LOSSES") else found == expected, (file.name, key)
        assert list(node.MATCHERS) == ["AdaptiveMatcher", "FixedMatcher"]
