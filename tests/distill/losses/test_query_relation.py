"""The relation between queries: hand-computed values, matching, padding, gradients where two queries are equal."""

from __future__ import annotations

import math

from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.query_relation import QueryRelationLoss, pairwise_distances
from detr_distill.distill.match import Match
from detr_distill.distill.students.base import StudentOutput, student_of
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, Pairs

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.convolutional import dense_cfg


def output(hidden):
    """One image whose queries have these hidden states, (Q, C) or, of some layers, (L, Q, C)."""
    hidden = torch.as_tensor(hidden, dtype=torch.float32)
    hidden = hidden[None] if hidden.dim() == 2 else hidden
    hidden = hidden[:, None].clone().requires_grad_()
    return DecoderOutput(hidden[..., :1], hidden[..., :1], hidden, "sigmoid")


def random_states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def match(query, target, weight=None, layers=1):
    index = [torch.tensor(values, dtype=torch.long)[None, None].expand(layers, 1, -1) for values in (query, target)]
    weight = torch.ones(len(query)) if weight is None else torch.tensor(weight)
    return Match("adaptive", "own", tuple(range(layers)), Pairs(*index, weight.expand(layers, 1, -1)))


def relation(student, teacher, pairs, **options):
    widths = student.hidden.shape[-1], teacher.hidden.shape[-1]
    loss = options.pop("loss", None) or QueryRelationLoss(widths=widths, **options)
    return loss(StudentOutput({}, {"own": student}), Knowledge(output=teacher), [pairs])


def value(*arguments, **options):
    return relation(*arguments, **options)["loss_distill_query_relation_adaptive"]


def test_two_queries_by_hand():
    """Distances 5 and 2: both off-diagonal entries of the 2 x 2 matrices differ by 3."""
    student, teacher = output([[0.0, 0.0], [3.0, 4.0]]), output([[1.0, 1.0, 1.0], [1.0, 3.0, 1.0]])
    found = value(student, teacher, match([0, 1], [0, 1]), normalize=False)
    assert math.isclose(found.item(), 3.0, rel_tol=1e-5)
    found.backward()
    # Query 1 lies too far away by 3; both entries of the matrix say so, and each counts a half.
    assert torch.allclose(student.hidden.grad[0, 0], torch.tensor([[-0.6, -0.8], [0.6, 0.8]]), atol=1e-5)
    assert teacher.hidden.grad is None


def test_three_queries_by_hand():
    """Points on a line: distances 1, 2, 3 (mean 2) against 1, 1, 2 (mean 4/3)."""
    student, teacher = output([[0.0], [1.0], [3.0]]), output([[5.0], [6.0], [7.0]])
    found = value(student, teacher, match([0, 1, 2], [0, 1, 2]), weight=2.0)
    expected = (abs(1 / 2 - 3 / 4) + abs(2 / 2 - 3 / 4) + abs(3 / 2 - 6 / 4)) / 3
    assert math.isclose(found.item(), 2 * expected, rel_tol=1e-4)
    plain = value(student, teacher, match([0, 1, 2], [0, 1, 2]), normalize=False)
    assert math.isclose(plain.item(), (0 + 1 + 1) / 3, rel_tol=1e-4)


def test_distances_are_the_euclidean_ones():
    states = random_states(2, 3, 40, 16) + 5
    exact = torch.linalg.vector_norm(states.unsqueeze(-2) - states.unsqueeze(-3), dim=-1)
    found = pairwise_distances(states)
    assert torch.allclose(found, exact, atol=5e-3), "on the diagonal squares of rounding size become their root"
    assert torch.allclose(found * (1 - torch.eye(40)), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", ["distance", "contrastive"])
def test_pairs_say_which_query_is_which(divergence):
    states, order = random_states(5, 8), torch.tensor([3, 0, 4, 1, 2])
    student, teacher = output(states), output(states[order])
    matched = value(student, teacher, match([0, 1, 2, 3, 4], torch.argsort(order).tolist()), divergence=divergence)
    crossed = value(student, teacher, match([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), divergence=divergence)
    assert matched < 0.1 * crossed
    assert divergence == "contrastive" or matched < 1e-5


def test_neither_width_nor_scale_counts():
    states = random_states(6, 4)
    wide = torch.cat([3 * states, torch.ones(6, 7)], dim=-1)
    pairs = match([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert value(output(states), output(wide), pairs) < 1e-5
    assert value(output(states), output(wide), pairs, normalize=False) > 1


@pytest.mark.parametrize("divergence", ["distance", "contrastive"])
def test_padding_and_unmatched_queries_are_left_out(divergence):
    student, teacher = output(random_states(6, 4)), output(random_states(5, 4, seed=1))
    found = value(student, teacher, match([4, 1, 2], [0, 3, 1]), divergence=divergence)
    padded = value(
        student, teacher, match([4, 1, 2, 0, 0], [0, 3, 1, 0, 0], [1.0, 1.0, 1.0, 0.0, 0.0]), divergence=divergence
    )
    assert torch.allclose(found, padded, rtol=1e-5)
    padded.backward()
    moved = student.hidden.grad[0, 0].abs().amax(-1) > 0
    assert moved.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("divergence", ["distance", "contrastive"])
@pytest.mark.parametrize("pairs", [match([], []), match([2], [1]), match([0, 0], [0, 0], [0.0, 0.0])])
def test_no_pairs_cost_nothing(divergence, pairs):
    student, teacher = output(random_states(3, 4)), output(random_states(2, 4, seed=1))
    found = value(student, teacher, pairs, divergence=divergence)
    found.backward()
    assert found.abs() < 1e-6 and student.hidden.grad.abs().max() < 1e-6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("states", [[[1.0, 2.0]] * 3, [[1.0, 2.0], [1.0, 2.0], [9.0, -4.0]], [[0.0, 0.0]] * 3])
def test_the_gradient_is_finite_where_queries_are_equal(states, normalize):
    student, teacher = output(states), output(random_states(3, 2))
    found = value(student, teacher, match([0, 1, 2], [0, 1, 2]), normalize=normalize)
    found.backward()
    assert found.isfinite() and student.hidden.grad.isfinite().all() and student.hidden.grad.abs().max() < 1e3


def test_contrastive_by_hand():
    """Cosines 1, 0 of the first query and 0.6, 0.8 of the second with the teacher's two."""
    student, teacher = output([[2.0, 0.0], [3.0, 4.0]]), output([[5.0, 0.0], [0.0, 1.0]])
    found = value(student, teacher, match([0, 1], [0, 1]), divergence="contrastive", temperature=0.5, weight=0.2)

    def entropy(own, other):
        return -own / 0.5 + math.log(math.exp(own / 0.5) + math.exp(other / 0.5))

    assert math.isclose(found.item(), 0.2 * (entropy(1.0, 0.0) + entropy(0.8, 0.6)) / 2, rel_tol=1e-5)


def test_only_contrastive_widths_are_projected():
    assert not list(QueryRelationLoss(widths=(4, 8)).parameters())
    assert not list(QueryRelationLoss(widths=(4, 4), divergence="contrastive").parameters())
    loss = QueryRelationLoss(widths=(4, 8), divergence="contrastive")
    student, teacher = output(random_states(3, 4)), output(random_states(3, 8, seed=1))
    value(student, teacher, match([0, 1, 2], [2, 1, 0]), loss=loss).backward()
    assert all(p.grad.abs().max() > 0 for p in loss.parameters()) and student.hidden.grad.abs().max() > 0


def test_each_layer_learns_from_its_own():
    student, teacher = output(random_states(2, 4, 3)), output(random_states(3, 4, 3, seed=1))
    pairs = match([0, 1, 2, 3], [3, 2, 1, 0], layers=2)
    pairs.teacher_layer = (0, 2)
    found = relation(student, teacher, pairs)
    for layer, teacher_layer, name in ((0, 0, "_0"), (1, 2, "")):
        alone = output(student.hidden[layer, 0].detach()), output(teacher.hidden[teacher_layer, 0].detach())
        expected = value(*alone, match([0, 1, 2, 3], [3, 2, 1, 0]))
        assert torch.allclose(found[f"loss_distill_query_relation_adaptive{name}"], expected)
    assert list(relation(student, teacher, pairs, layers="last")) == ["loss_distill_query_relation_adaptive"]


def test_half_precision_states_are_compared_in_float32():
    student, teacher = output(random_states(3, 4)), output(random_states(3, 4, seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(student, teacher, match([0, 1, 2], [0, 1, 2]))
    assert found.dtype == torch.float32
    assert torch.equal(found, value(student, teacher, match([0, 1, 2], [0, 1, 2])))


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        ("DIVERGENCE", "l7", "'distance', 'contrastive'"),
        ("TEMPERATURE", 0.0, "TEMPERATURE is 0.0"),
        ("LAYERS", "first", "QUERY_RELATION_LOSS.LAYERS"),
        ("WEIGHT", -1.0, "QUERY_RELATION_LOSS.WEIGHT"),
    ],
)
def test_bad_keys_are_named(equal_teacher, key, bad, message):
    keys = {**equal_teacher, "MODEL__DISTILL__LOSSES": ["QueryRelationLoss"]}
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**keys, **{f"MODEL__DISTILL__QUERY_RELATION_LOSS__{key}": bad}))


def test_a_detector_without_queries_is_refused():
    queries, maps = student_of(build_model(small_cfg())), student_of(build_model(dense_cfg("RetinaNet")))
    for student, teacher, who in ((maps, queries, "student"), (queries, maps, "teacher")):
        message = f"QueryRelationLoss asks for hidden states, which the {who}'s RetinaNet does not have.*DetrDetector"
        with pytest.raises(ConfigError, match=message):
            QueryRelationLoss(small_cfg(), student, teacher)


@pytest.mark.parametrize("divergence", ["distance", "contrastive"])
def test_in_a_step_with_a_wider_teacher(build_distiller, wide_teacher, inputs, divergence):
    keys = {"LOSSES": ["QueryRelationLoss"], "QUERY_RELATION_LOSS__DIVERGENCE": divergence}
    model = build_distiller(wide_teacher, **{f"MODEL__DISTILL__{key}": value for key, value in keys.items()})
    losses = {name: loss for name, loss in model(inputs).items() if "relation" in name}
    assert set(losses) == {f"loss_distill_query_relation_{m}{n}" for m in ("adaptive", "fixed") for n in ("", "_0")}
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    decoder = model.student.decoder.layers
    assert max(p.grad.abs().max() for p in decoder.parameters() if p.grad is not None) > 0
