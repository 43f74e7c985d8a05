"""Matching and detection loss against hand-computed and independently computed values."""

from __future__ import annotations

import itertools
import math

from detr_distill.detr.boxes import inverse_sigmoid, pairwise_giou, to_centres, to_corners
from detr_distill.detr.supervision.assignment import Cost, solve_assignments
from detr_distill.detr.supervision.criterion import SetCriterion
from detr_distill.detr.supervision.matcher import HungarianMatcher
from detr_distill.errors import NonFiniteError
from detr_distill.structures import DecoderOutput, GroundTruth, QueryGroup

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou


def random_boxes(*shape, seed=0):
    values = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([values[..., :2] * 0.6 + 0.2, values[..., 2:] * 0.3 + 0.05], dim=-1)


def make_case(layers=2, images=2, queries=6, classes=4, counts=(3, 1), activation="sigmoid", seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = classes + (activation == "softmax")
    output = DecoderOutput(
        torch.randn(layers, images, queries, columns, generator=generator),
        random_boxes(layers, images, queries, seed=seed + 1),
        torch.zeros(layers, images, queries, 1),
        activation,
    )
    most = max(counts)
    valid = torch.arange(most)[None] < torch.tensor(counts)[:, None]
    labels = torch.randint(0, classes, (images, most), generator=generator) * valid
    boxes = random_boxes(images, most, seed=seed + 2) * valid[..., None]
    return output, GroundTruth(labels, boxes, valid, list(counts))


def make_criterion(classification, deep_supervision=True, classes=4, l1_boxes="centres"):
    return SetCriterion(
        num_classes=classes,
        matcher=HungarianMatcher(cost_class=2.0, l1_boxes=l1_boxes),
        l1_boxes=l1_boxes,
        classification=classification,
        class_weight=2.0,
        deep_supervision=deep_supervision,
    )


@pytest.mark.parametrize("shape", [(4, 2, 110, 110), (3, 1, 150, 90), (3, 1, 90, 150), (1, 2, 120, 120)])
@pytest.mark.parametrize("alike", [0.01, 1.0])
def test_large_matchings_of_all_layers_are_the_best(shape, alike):
    """Layers that share what the first one's solution tells, whether their costs are like its or not."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, *shape[1:], generator=generator) + alike * torch.rand(shape, generator=generator)
    counts = [shape[3] - 7 * image for image in range(shape[1])]
    (pairs,) = solve_assignments([Cost("large", values, counts)])
    for layer, image in itertools.product(range(shape[0]), range(shape[1])):
        matrix = values[layer, image, :, : counts[image]].double().numpy()
        kept = pairs.weight[layer, image].bool()
        found = [index[layer, image][kept].numpy() for index in (pairs.query, pairs.target)]
        assert len(found[0]) == len(set(found[0])) == len(set(found[1])) == min(matrix.shape)
        assert matrix[tuple(found)].sum() == pytest.approx(matrix[linear_sum_assignment(matrix)].sum(), rel=1e-9)


def test_pairwise_giou_equals_torchvision():
    first, second = random_boxes(7), random_boxes(5, seed=1)
    expected = generalized_box_iou(to_corners(first), to_corners(second))
    assert torch.allclose(pairwise_giou(first, second), expected, atol=1e-6)
    assert torch.allclose(to_centres(to_corners(first)), first, atol=1e-6)
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert pairwise_giou(point, point).isfinite().all()


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_inverse_sigmoid_holds_each_of_two_sides(epsilon):
    """log(max(v, epsilon) / max(1 - v, epsilon)); within the limits torch's logit and its gradient, to the last bit."""
    beyond = torch.tensor([0.0, epsilon / 3, 1 - epsilon / 3, 1.0, -0.5, 1.5], dtype=torch.float64)
    inside = torch.tensor([epsilon, 2 * epsilon, 0.3, 0.5, 1 - 2 * epsilon])
    held = beyond.clamp(0, 1)
    expected = (held.clamp(min=epsilon) / (1 - held).clamp(min=epsilon)).log()
    assert (inverse_sigmoid(beyond, epsilon) - expected).abs().max() < 1e-6
    values, same = inside.clone().requires_grad_(), inside.clone().requires_grad_()
    found, logit = inverse_sigmoid(values, epsilon), torch.logit(same)
    assert torch.equal(found, logit)
    assert torch.equal(*(torch.autograd.grad(x.sum(), y)[0] for x, y in ((found, values), (logit, same))))


def test_assignment_is_the_cheapest_of_all():
    values = torch.rand(2, 2, 4, 3, generator=torch.Generator().manual_seed(3))
    (pairs,) = solve_assignments([Cost("test", values, [3, 2])])
    assert pairs.query.shape == (2, 2, 3) and pairs.weight.sum(-1).tolist() == [[3, 2], [3, 2]]
    for layer, (image, count) in itertools.product(range(2), enumerate([3, 2])):
        matrix = values[layer, image]
        best = min(
            sum(matrix[q, t].item() for t, q in enumerate(order)) for order in itertools.permutations(range(4), count)
        )
        found = pairs.weight[layer, image] > 0
        total = matrix[pairs.query[layer, image][found], pairs.target[layer, image][found]].sum().item()
        assert math.isclose(total, best, rel_tol=1e-5)


def test_batched_assignment_equals_single_and_keeps_order():
    costs = [Cost("a", torch.rand(3, 2, 5, 4), [4, 0]), Cost("b", torch.rand(1, 2, 3, 6), [6, 6])]
    together = solve_assignments(costs)
    for cost, pairs in zip(costs, together, strict=True):
        (alone,) = solve_assignments([cost])
        assert torch.equal(pairs.query, alone.query) and torch.equal(pairs.target, alone.target)
        assert torch.equal(pairs.weight, alone.weight)
    assert solve_assignments([]) == []
    (empty,) = solve_assignments([Cost("none", torch.zeros(2, 1, 5, 0), [0])])
    assert empty.query.shape == (2, 1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_cost_names_layer_and_image(bad):
    values = torch.rand(2, 3, 4, 2)
    values[1, 2, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"'boxes' of decoder layer 1 and image 2"):
        solve_assignments([Cost("boxes", values, [2, 2, 2])])
    solve_assignments([Cost("boxes", values, [2, 2, 0])])  # a padded column may hold anything


@pytest.mark.parametrize("l1_boxes", ["centres", "corners"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_matching_cost_by_hand(activation, l1_boxes):
    output, targets = make_case(activation=activation)
    cost = HungarianMatcher(cost_class=2.0, cost_l1=5.0, cost_giou=3.0, l1_boxes=l1_boxes)(output, targets)
    layer, image, query, place = 1, 0, 4, 2
    box, goal = output.boxes[layer, image, query], targets.boxes[image, place]
    label = targets.labels[image, place]
    if activation == "softmax":
        class_cost = -output.logits[layer, image, query].softmax(-1)[label]
    else:
        p = output.logits[layer, image, query, label].sigmoid()
        class_cost = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    giou = generalized_box_iou(to_corners(box)[None], to_corners(goal)[None])[0, 0]
    first, second = (to_corners(box), to_corners(goal)) if l1_boxes == "corners" else (box, goal)
    expected = 2 * class_cost + 5 * (first - second).abs().sum() - 3 * giou
    assert torch.allclose(cost[layer, image, query, place], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("classification", "l1_boxes"), [("focal", "centres"), ("softmax", "centres"), ("focal", "corners")]
)
def test_losses_equal_a_loop_over_images(classification, l1_boxes):
    activation = "softmax" if classification == "softmax" else "sigmoid"
    output, targets = make_case(activation=activation)
    criterion = make_criterion(classification, l1_boxes=l1_boxes)
    group = QueryGroup("own", torch.zeros(2, 6, 1), torch.zeros(2, 6, 1))
    (pairs,) = solve_assignments([criterion.cost(output, group, targets)])
    losses = criterion(output, group, targets, pairs)
    objects = sum(targets.counts)
    for layer, suffix in ((0, "_0"), (1, "")):
        box = giou = 0.0
        labels = torch.full((2, 6), 4)
        for image in range(2):
            for q, t, w in zip(*(x[layer, image] for x in (pairs.query, pairs.target, pairs.weight)), strict=True):
                if w > 0:
                    labels[image, q] = targets.labels[image, t]
                    pred, goal = output.boxes[layer, image, q], targets.boxes[image, t]
                    difference = to_corners(pred) - to_corners(goal) if l1_boxes == "corners" else pred - goal
                    box += difference.abs().sum() / objects
                    giou += (1 - generalized_box_iou(to_corners(pred)[None], to_corners(goal)[None])[0, 0]) / objects
        logits = output.logits[layer].flatten(0, 1)
        if classification == "softmax":
            weight = torch.tensor([1.0] * 4 + [0.1])
            expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), weight)
        else:
            p, one_hot = logits.sigmoid(), torch.nn.functional.one_hot(labels.flatten(), 5)[:, :4]
            terms = torch.where(one_hot > 0, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log())
            expected = terms.sum() / objects
        assert torch.allclose(losses["loss_class" + suffix], 2 * expected, atol=1e-5)
        assert torch.allclose(losses["loss_box" + suffix], 5 * torch.as_tensor(box), atol=1e-5)
        assert torch.allclose(losses["loss_giou" + suffix], 2 * torch.as_tensor(giou), atol=1e-5)


def test_group_weight_suffix_and_deep_supervision():
    output, targets = make_case()
    group = QueryGroup("fixed", torch.zeros(2, 6, 1), torch.zeros(2, 6, 1), loss_weight=0.5)
    criterion = make_criterion("focal")
    (pairs,) = solve_assignments([criterion.cost(output, group, targets)])
    half = criterion(output, group, targets, pairs)
    group.loss_weight = 1.0
    full = criterion(output, group, targets, pairs)
    assert set(full) == {f"loss_{n}_fixed{s}" for n in ("class", "box", "giou") for s in ("", "_0")}
    assert all(torch.allclose(full[k], 2 * half[k]) for k in full)
    assert set(make_criterion("focal", deep_supervision=False)(output, group, targets, pairs)) == {
        "loss_class_fixed", "loss_box_fixed", "loss_giou_fixed",
    }  # fmt: skip


def test_forced_cost_decides_the_assignment():
    output, targets = make_case(counts=(2, 2))
    forced = torch.ones(2, 6, 2)
    forced[:, 5, 0] = forced[:, 4, 1] = 0
    group = QueryGroup("fixed", torch.zeros(2, 6, 1), torch.zeros(2, 6, 1), forced_cost={1: forced})
    criterion = make_criterion("focal")
    (pairs,) = solve_assignments([criterion.cost(output, group, targets)])
    assert pairs.query[1].tolist() == [[4, 5], [4, 5]] and pairs.target[1].tolist() == [[1, 0], [1, 0]]
    (free,) = solve_assignments([criterion.cost(output, QueryGroup("own", group.content, group.position), targets)])
    assert torch.equal(pairs.query[0], free.query[0]) and not torch.equal(pairs.query[1], free.query[1])
