"""Matchers: pairs follow a permuted teacher, its assignment is the one used, unequal counts pair what they can."""

from __future__ import annotations

from detr_distill.detr.boxes import pairwise_giou
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.assignment import Cost, solve_assignments
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.matchers.adaptive import AdaptiveMatcher
from detr_distill.distill.matchers.layer_pairs import pair_layers, take_layers
from detr_distill.distill.students import StudentOutput, StudentStep
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.distill.student_steps import start_step
from helpers.torch_calls import torch_calls
from scipy.optimize import linear_sum_assignment


class RecordedMatchings(Matchings):
    """A ledger that keeps its handles, by the names of their costs."""

    def __init__(self):
        super().__init__()
        self.handles = {}

    def add(self, cost):
        self.handles[cost.name] = super().add(cost)
        return self.handles[cost.name]


def step_parts(model, inputs):
    """Knowledge, student output, all handles of the step's matchings, and matches of one step."""
    knowledge = model.teacher(StudentStep(inputs), model.capture)
    matchers = list(model.matchers.values())
    groups = [group for matcher in matchers for group in matcher.extra_groups(knowledge, len(inputs))]
    student, step = start_step(model.student, inputs)
    matchings = RecordedMatchings()
    output = student.finish(step, groups, model.capture, matchings)
    costs = [matcher.cost(output, knowledge) for matcher in matchers]
    handles = [None if cost is None else matchings.add(cost) for cost in costs]
    matchings.solve()
    matches = {
        matcher.name: matcher(output, knowledge, None if handle is None else handle.pairs)
        for matcher, handle in zip(matchers, handles, strict=True)
    }
    return knowledge, output, matchings.handles, matches


def test_adaptive_matching_undoes_a_permutation(build_distiller, equal_teacher, inputs):
    model = build_distiller(equal_teacher, MODEL__DISTILL__MATCHERS=["AdaptiveMatcher"]).eval()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    position = model.teacher.detector.queries.position
    position.weight.data = position.weight.data[order]
    _, _, _, matches = step_parts(model, inputs)
    pairs = matches["adaptive"].pairs
    inverse = torch.argsort(order)
    assert torch.equal(pairs.query, torch.arange(7).expand(2, 2, 7))
    assert torch.equal(pairs.target, inverse.expand(2, 2, 7))


def test_adaptive_cost_by_hand(build_distiller, wide_teacher, inputs):
    model = build_distiller(wide_teacher, MODEL__DISTILL__MATCHERS=["AdaptiveMatcher"])
    knowledge, student, _, _ = step_parts(model, inputs)
    cost = model.matchers["AdaptiveMatcher"].cost(student, knowledge)
    layer, image, query, target = 0, 1, 3, 8
    own, teacher = student.outputs["own"], knowledge.output
    teacher_layer = pair_layers(2, 3, "aligned")[layer]
    soft = teacher.logits[teacher_layer, image, target].sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        own.logits[layer, image, query], soft, reduction="sum"
    )
    pred, goal = own.boxes[layer, image, query], teacher.boxes[teacher_layer, image, target]
    from detr_distill.detr.boxes import to_corners

    from torchvision.ops import generalized_box_iou

    giou = generalized_box_iou(to_corners(pred)[None], to_corners(goal)[None])[0, 0]
    own_entropy = torch.distributions.Bernoulli(soft).entropy().sum()
    expected = entropy - own_entropy + 5 * (pred - goal).abs().sum() - 2 * giou
    assert cost.values.shape == (2, 2, 7, 9)
    assert torch.allclose(cost.values[layer, image, query, target], expected.detach(), atol=1e-4)


def predictions(queries: int, seed: int) -> DecoderOutput:
    """Two layers of two images, some queries sure of a class and others not."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 2, queries, 5, generator=generator) - 3
    boxes = 0.1 + 0.8 * torch.rand(2, 2, queries, 4, generator=generator)
    return DecoderOutput(logits, boxes, torch.zeros(2, 2, queries, 0), "sigmoid")


def cost_by_hand(own, output, layer: int, image: int, entropy_counts: bool) -> torch.Tensor:
    """(Qs, Qt): KL, L1 and GIoU, row by row; where the teacher's entropy does not count, cross-entropy for KL."""
    soft, boxes = output.logits[layer, image].sigmoid(), output.boxes[layer, image]
    entropy = entropy_counts * torch.distributions.Bernoulli(soft).entropy().sum(-1)
    rows = []
    for logits, box in zip(own.logits[layer, image], own.boxes[layer, image], strict=True):
        cross = F.binary_cross_entropy_with_logits(logits.expand_as(soft), soft, reduction="none").sum(-1)
        distance = (box - boxes).abs().sum(-1)
        rows.append(cross - entropy + 5 * distance - 2 * pairwise_giou(box[None], boxes)[0])
    return torch.stack(rows)


@pytest.mark.parametrize(("queries", "differ"), [(90, True), (30, False), (20, False)])
def test_the_teachers_entropy_decides_who_stays_alone(queries, differ):
    """KL and cross-entropy differ by it, which matters only where a teacher's query can stay unmatched."""
    names = list("abcde")
    own, output = predictions(30, seed=1), predictions(queries, seed=2)
    found = {}
    for divergence in ("kl", "bce"):
        matcher = AdaptiveMatcher(classes=match_classes(names, names, 5, 5), divergence=divergence)
        cost = matcher.cost(StudentOutput({}, {"own": own}), Knowledge(output=output))
        (pairs,) = solve_assignments([cost])
        for layer, image in ((0, 0), (0, 1), (1, 0), (1, 1)):
            expected = cost_by_hand(own, output, layer, image, divergence == "kl")
            rows, columns = linear_sum_assignment(expected.numpy())
            assert pairs.query[layer, image].tolist() == rows.tolist()
            assert pairs.target[layer, image].tolist() == columns.tolist()
            if differ:
                assert torch.allclose(cost.values[layer, image], expected, atol=1e-4)
        found[divergence] = pairs.target
    different = (found["kl"] != found["bce"]).float().mean()
    assert different > 0.15 if differ else different == 0


def test_rectangular_matching_pairs_the_smaller_side(build_distiller, save_teacher, inputs):
    for queries in (3, 9):
        model = build_distiller(save_teacher(MODEL__DETR__NUM_QUERIES=queries))
        *_, matches = step_parts(model, inputs)
        pairs = matches["adaptive"].pairs
        assert pairs.query.shape == (2, 2, min(queries, 7)) and pairs.weight.min() == 1
        for index in (pairs.query, pairs.target):
            assert all(len(set(row)) == len(row) for row in index.flatten(0, 1).tolist()), "each query at most once"
        fixed = matches["fixed"].pairs
        assert torch.equal(fixed.query, fixed.target) and fixed.query.shape == (2, 2, queries)


def test_teacher_assignment_is_the_one_used(build_distiller, wide_teacher, inputs):
    """The last layer of the fixed group has the teacher's own Hungarian assignment, the other layers their own."""
    model = build_distiller(wide_teacher, MODEL__DISTILL__MATCHERS=["FixedMatcher"])
    knowledge, student, handles, _ = step_parts(model, inputs)
    fixed, objects = handles["ground truth, group 'fixed'"].pairs, read_ground_truth(inputs, "cpu")
    cost = model.teacher.detector.criterion.matcher(knowledge.output, objects)
    own_cost = model.student.criterion.matcher(student.outputs["fixed"], objects)
    differs = False
    for image, entry in enumerate(inputs):
        count = len(entry["instances"])
        for layer, expected in ((1, cost[2]), (0, own_cost[0])):
            rows, columns = linear_sum_assignment(expected[image, :, :count].numpy())
            assert fixed.query[layer, image, :count].tolist() == rows.tolist()
            assert fixed.target[layer, image, :count].tolist() == columns.tolist()
        free_rows, _ = linear_sum_assignment(own_cost[1, image, :, :count].detach().numpy())
        differs |= free_rows.tolist() != fixed.query[1, image, :count].tolist()
    assert differs, "the test must be able to tell the teacher's assignment from the group's own"


def test_teacher_assignment_reaches_the_loss(build_distiller, wide_teacher, inputs):
    """Another teacher assignment gives another loss on the last layer of the fixed group and nowhere else."""
    model = build_distiller(
        wide_teacher, MODEL__DISTILL__MATCHERS=["FixedMatcher"], MODEL__DISTILL__LOSSES=["PredictionLoss"]
    )
    before = model(inputs)
    original = model.teacher.forward

    def reversed_assignment(*args):
        knowledge = original(*args)
        knowledge.label_cost = -knowledge.matching_cost()
        return knowledge

    model.teacher.forward = reversed_assignment
    after = model(inputs)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"loss_class_fixed", "loss_box_fixed", "loss_giou_fixed"}


def test_assignment_on_all_layers_or_none(build_distiller, wide_teacher, inputs):
    for choice, layers in (("all", {0, 1}), ("none", set()), ("last", {1})):
        model = build_distiller(wide_teacher, MODEL__DISTILL__FIXED_MATCHER__TEACHER_ASSIGNMENT=choice)
        knowledge = model.teacher(StudentStep(inputs), frozenset())
        (group,) = model.matchers["FixedMatcher"].extra_groups(knowledge, 2)
        assert set(group.forced_cost) == layers


def test_fixed_group_is_the_teachers_queries(build_distiller, equal_teacher, wide_teacher, inputs):
    model = build_distiller(equal_teacher)
    knowledge = model.teacher(StudentStep(inputs), frozenset())
    (group,) = model.matchers["FixedMatcher"].extra_groups(knowledge, 2)
    assert torch.equal(group.position[0], model.teacher.detector.queries.position.weight)
    assert not list(model.matchers["FixedMatcher"].parameters()), "equal widths need no projection"
    wide = build_distiller(wide_teacher)
    (group,) = wide.matchers["FixedMatcher"].extra_groups(wide.teacher(StudentStep(inputs), frozenset()), 2)
    assert group.content.shape == group.position.shape == (2, 9, 16) and group.content.abs().max() == 0


def test_which_layer_teaches_which():
    assert pair_layers(6, 6, "aligned") == (0, 1, 2, 3, 4, 5)
    assert pair_layers(3, 6, "aligned") == (1, 3, 5)
    assert pair_layers(6, 3, "aligned") == (0, 0, 1, 1, 2, 2)
    assert pair_layers(2, 3, "aligned") == (1, 2)
    assert pair_layers(1, 6, "aligned") == (5,)
    assert pair_layers(3, 6, "last") == (5, 5, 5)
    values = torch.arange(3.0)[:, None]
    assert take_layers(values, (0, 1, 2)) is values
    assert take_layers(values, (1, 2)).flatten().tolist() == [1, 2]
    assert take_layers(values, (2, 2, 0)).flatten().tolist() == [2, 2, 0]


def flat(index) -> tuple:
    return index if isinstance(index, tuple) else ()


def test_no_index_list_is_copied_in_a_step():
    """A list as an index becomes a new tensor, on a GPU by a copy that waits; these use tensors already there."""
    classes = match_classes(["cat", "bird", "dog"], ["tree", "dog", "cat"], 3, 3)
    values, labels = torch.randn(3, 4, 3, requires_grad=True), torch.tensor([[0, 1], [2, 2]])

    def use():
        chosen = classes.select_student(values), classes.select_teacher(values), take_layers(values, (1, 2))
        return *chosen, classes.teacher_labels(labels)

    with torch.inference_mode():  # what is kept from here must serve a training step too
        use()
    with torch_calls() as calls:
        student, teacher, layers, teacher_labels = use()
    assert not {torch.tensor, torch.as_tensor, torch.from_numpy} & {function for function, _ in calls}
    indices = [index for function, (*_, index) in calls if function is torch.Tensor.__getitem__]
    assert indices and not any(isinstance(part, list | range) for index in indices for part in (index, *flat(index)))
    assert torch.equal(student, values[..., [0, 2]]) and torch.equal(teacher, values[..., [2, 1]])
    assert torch.equal(layers, values[[1, 2]]) and teacher_labels.tolist() == [[2, -1], [1, 1]]
    student.sum().backward()
    assert values.grad.sum((0, 1)).tolist() == [12, 0, 12]


def test_batched_adaptive_matching_equals_single(build_distiller, equal_teacher):
    model = build_distiller(equal_teacher, MODEL__DISTILL__MATCHERS=["AdaptiveMatcher"]).eval()
    inputs = make_inputs(sizes=((48, 48), (48, 48)))
    _, student, _, matches = step_parts(model, inputs)
    cost = model.matchers["AdaptiveMatcher"].cost(student, model.teacher(StudentStep(inputs), model.capture))
    for image in range(2):
        (alone,) = solve_assignments([Cost("one", cost.values[:, image : image + 1], [7])])
        assert torch.equal(alone.target[:, 0], matches["adaptive"].pairs.target[:, image])


@pytest.mark.parametrize(
    ("matcher", "losses", "message"),
    [
        ("AdaptiveMatcher", ["PredictionLoss"], "AdaptiveMatcher pairs predictions, and .* LabelEncoder makes none"),
        ("AdaptiveMatcher", ["AttentionLoss"], "AdaptiveMatcher pairs predictions, and .* LabelEncoder makes none"),
        ("FixedMatcher", ["PredictionLoss"], "found LabelEncoder"),
    ],
)
def test_a_teacher_without_predictions_pairs_nothing(matcher, losses, message):
    keys = {"META_ARCHITECTURE": "DistillDetector", "DISTILL__TEACHER__NAME": "LabelEncoder"}
    keys |= {"DISTILL__MATCHERS": [matcher], "DISTILL__LOSSES": losses}
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**{f"MODEL__{key}": value for key, value in keys.items()}))
