"""The sampled-attention loss of pairs by hand: the teacher's scores, heads, and no pair at all."""

from __future__ import annotations

from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.match import Match
from detr_distill.distill.students.base import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.structures import DecoderOutput, Pairs, SampledPoints

import pytest
import torch
from helpers.distill.sampled_points import build_loss, measure_of, random_points


def output(points, scores=None):
    """A layer of which nothing but the points and the best class's probability is read."""
    nothing = torch.zeros(1, 1, points.weights.shape[1], 2)
    if scores is not None:
        nothing = torch.tensor(scores).logit()[None, None, :, None] - torch.tensor([0.0, 1.0])
    return DecoderOutput(nothing, nothing, nothing, "sigmoid", sampled_attention=(points,))


def run(loss, student, teacher, query, target, weight, scores=None):
    index = [torch.tensor(values)[None, None] for values in (query, target)]
    match = Match("adaptive", "own", (0,), Pairs(*index, torch.tensor(weight)[None, None]))
    losses = loss(StudentOutput({}, {"own": output(student)}), Knowledge(output=output(teacher, scores)), [match])
    return losses["loss_distill_sampled_attention_adaptive"]


def head_points(*shape, seed=0):
    """Points (1, Q, H, N, P) of ``shape`` (Q, H, N, P), adding up to 1 for each head."""
    queries, heads, levels, points = shape
    places, weights = random_points(1, queries, heads, levels * points, seed=seed, dtype=torch.float32)
    return SampledPoints(places.unflatten(3, (levels, points)), weights.unflatten(3, (levels, points)))


@pytest.mark.parametrize("distance", ["energy", "js"])
def test_loss_is_the_mean_of_the_pairs(distance):
    student, teacher = head_points(3, 2, 1, 4), head_points(4, 3, 2, 2, seed=1)
    loss = build_loss(distance=distance, weight=0.5, pair_weight="equal")
    found = run(loss, student, teacher, [2, 0, 1], [3, 1, 0], [1.0, 1.0, 0.0])
    expected = 0.0
    for query, target in ((2, 3), (0, 1)):
        goal = teacher.locations[0, target].flatten(0, 2), teacher.weights[0, target].flatten() / 3
        pred = student.locations[0, query].flatten(0, 2), student.weights[0, query].flatten() / 2
        expected += measure_of(loss)(*goal, *pred) / 2
    assert torch.allclose(found, 0.5 * expected, atol=1e-6)


def test_pairs_count_by_the_teachers_score():
    student, teacher = head_points(3, 2, 1, 4), head_points(3, 2, 1, 4, seed=1)
    single = [run(build_loss(pair_weight="equal"), student, teacher, [i], [i], [1.0]) for i in range(3)]
    scores, loss = [0.9, 0.1, 0.6], build_loss()
    found = run(loss, student, teacher, [0, 1, 2], [0, 1, 2], [1.0, 1.0, 1.0], scores)
    assert torch.allclose(found, sum(s * x for s, x in zip(scores, single, strict=True)) / 1.6, atol=1e-6)
    # What is unsure altogether stays small: no divisor below 1.
    found = run(loss, student, teacher, [0, 1, 2], [0, 1, 2], [0.0, 1.0, 0.0], scores)
    assert torch.allclose(found, 0.1 * single[1], atol=1e-6)


def test_heads_are_compared_one_by_one_or_together():
    """Exchanged heads are the same distribution together, and another one by one; unequal counts go together."""
    student = head_points(3, 2, 2, 2)
    exchanged = SampledPoints(student.locations.flip(2), student.weights.flip(2))
    pairs = ([0, 1, 2], [0, 1, 2], [1.0, 1.0, 1.0])
    assert run(build_loss(heads="mean"), student, exchanged, *pairs).abs() < 1e-6
    each = build_loss(heads="each")
    measure = measure_of(each)
    found = run(each, student, exchanged, *pairs)
    expected = [
        measure(student.locations[0, q, 1 - h].flatten(0, 1), student.weights[0, q, 1 - h].flatten(),
                student.locations[0, q, h].flatten(0, 1), student.weights[0, q, h].flatten())
        for q in range(3) for h in range(2)
    ]  # fmt: skip
    assert found > 0.01 and torch.allclose(found, torch.stack(expected).mean(), atol=1e-6)
    other = head_points(3, 3, 1, 2, seed=1)
    together = run(build_loss(heads="mean"), student, other, *pairs)
    assert torch.equal(run(each, student, other, *pairs), together)


def test_no_pair_costs_nothing():
    assert run(build_loss(), head_points(2, 1, 1, 2), head_points(2, 1, 1, 2), [0], [0], [0.0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "kl"}, "DISTANCE is 'kl'. Known: 'energy', 'js'"),
        ({"pair_weight": "all"}, "PAIR_WEIGHT is 'all'. Known: 'equal', 'teacher_score'"),
        ({"heads": "all"}, "HEADS is 'all'. Known: 'mean', 'each'"),
    ],
)
def test_bad_keys_are_named(options, message):
    with pytest.raises(ConfigError, match=f"SAMPLED_ATTENTION_LOSS.{message}"):
        build_loss(**options)
