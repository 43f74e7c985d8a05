"""The sampled-attention loss: closed forms of its two distances, what they do not depend on, and the points kept."""

from __future__ import annotations

import math

from detr_distill.detr.decoder_deformable import DeformableDecoder
from detr_distill.detr.deformable import multi_scale_deformable_attention
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge, Match
from detr_distill.distill.loss_sampled_attention import (
    NEAR,
    SampledAttentionLoss,
    energy_coefficient,
    jensen_shannon,
    rasterise,
)
from detr_distill.distill.students import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.pairs import Pairs
from detr_distill.registry import DECODER_REGISTRY
from detr_distill.structures import SAMPLED_ATTENTION, DecoderOutput, QueryGroup, SampledPoints

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from distill.test_distiller import ReadCounter

POINTS = frozenset({SAMPLED_ATTENTION})
LEARNED = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage2", "stage3"],
    "MODEL__DETR__NUM_LEVELS": 3,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "DeformableEncoder",
    "MODEL__DETR__DECODER__NAME": "DeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "LearnedContentQueries",
}
TWO_STAGE = {
    **LEARNED,
    "MODEL__DETR__DECODER__NAME": "DeformableBoxDecoder",
    "MODEL__DETR__DECODER__BOX_REFINEMENT": True,
    "MODEL__DETR__QUERIES__NAME": "TwoStageQueries",
}
OTHER_SAMPLING = {
    **LEARNED,
    "MODEL__DETR__HIDDEN_DIM": 64,
    "MODEL__DETR__NUM_HEADS": 4,
    "MODEL__DETR__NUM_LEVELS": 2,
    "MODEL__DETR__DECODER__NUM_POINTS": 3,
    "MODEL__DETR__DECODER__NUM_LAYERS": 3,
    "MODEL__DETR__NUM_QUERIES": 9,
}
LOSSES = {"MODEL__DISTILL__LOSSES": ["PredictionLoss", "SampledAttentionLoss"]}


def build_loss(**options):
    return SampledAttentionLoss(classes=match_classes(None, None, 2, 2), **options)


def random_points(*shape, seed=0, dtype=torch.float64):
    """Places (*shape, 2) around the image and weights (*shape) that add up to 1 over the last axis."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 1.2 - 0.1
    return places, torch.randn(*shape, generator=generator, dtype=dtype).softmax(-1)


def energy_by_pairs(goal_places, goal_weights, places, weights):
    """The energy coefficient by its definition, every pair of points."""

    def mean_distance(a, b, first, second):
        return (torch.cdist(a, b) * first.unsqueeze(-1) * second.unsqueeze(-2)).sum((-2, -1))

    between = mean_distance(goal_places, places, goal_weights, weights)
    within = mean_distance(goal_places, goal_places, goal_weights, goal_weights) + mean_distance(
        places, places, weights, weights
    )
    return (between - within / 2) / (between + NEAR)


def test_energy_of_many_directions_is_its_definition():
    goal, pred = random_points(3, 5, 6), random_points(3, 5, 9, seed=1)
    exact = energy_by_pairs(*goal, *pred)
    assert torch.allclose(energy_coefficient(*goal, *pred, directions=400), exact, atol=1e-4)
    assert torch.allclose(energy_coefficient(*goal, *pred, directions=4), exact, atol=0.05)
    assert exact.min() > 0 and exact.max() < 1


def test_energy_of_two_places_by_hand():
    """A place at distance d along x from one on a line: |F - G| is 1 between the two projections."""
    one = torch.ones(1)
    for distance in (0.001, 0.2, 3.0):
        found = energy_coefficient(torch.tensor([[0.5, 0.5]]), one, torch.tensor([[0.5 + distance, 0.5]]), one, 2)
        assert math.isclose(found, (distance / 2) / (distance / 2 + NEAR * 2 / math.pi), rel_tol=1e-4)
    # Half of the weight at the goal, half at d: F - G is 1/2 between them and F + G - 2FG is 1/2.
    places, half = torch.tensor([[0.5, 0.5], [0.9, 0.5]]), torch.tensor([0.5, 0.5])
    found = energy_coefficient(places[:1], one, places, half, 2)
    assert math.isclose(found, (0.25 * 0.2) / (0.5 * 0.2 + NEAR * 2 / math.pi), rel_tol=1e-4)


@pytest.mark.parametrize("distance", ["energy", "js"])
def test_distance_sees_distributions_not_points(distance):
    """Their order, a point in two parts, points without weight: nothing of it counts."""
    measure = build_loss(distance=distance).distance
    goal, (places, weights) = random_points(4, 6), random_points(4, 5, seed=1)
    expected = measure(*goal, places, weights)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(measure(*goal, places[:, order], weights[:, order]), expected)
    split = torch.cat([weights * 0.3, weights * 0.7, torch.zeros(4, 2)], dim=1)
    more = torch.cat([places, places, torch.rand(4, 2, 2, dtype=torch.float64)], dim=1)
    assert torch.allclose(measure(*goal, more, split), expected, atol=1e-6)
    assert measure(places, weights, more, split).abs().max() < 1e-6
    assert torch.allclose(measure(places, weights, *goal), expected, atol=1e-6), "symmetric"


@pytest.mark.parametrize("distance", ["energy", "js"])
def test_gradient_is_right_and_finite_where_both_are_equal(distance):
    measure = build_loss(distance=distance, grid_size=5).distance
    goal, (places, weights) = random_points(2, 4), random_points(2, 3, seed=1)
    assert torch.autograd.gradcheck(
        lambda p, w: measure(*goal, p, w), (places.requires_grad_(), weights.requires_grad_())
    )
    same = torch.full((1, 3, 2), 0.5, requires_grad=True)
    even = torch.full((1, 3), 1 / 3, requires_grad=True)
    measure(same.detach(), even.detach(), same, even).sum().backward()
    assert same.grad.abs().max() < 1 / NEAR and even.grad.isfinite().all()


def test_energy_pulls_a_point_from_any_distance_and_for_any_size():
    goal, one = torch.tensor([[0.2, 0.3]]), torch.ones(1)
    place = torch.tensor([[0.9, 0.8]], requires_grad=True)
    energy_coefficient(goal, one, place, one, 4).backward()
    assert (place.grad > 0).all()
    places, weights = random_points(5, 7, dtype=torch.float64)
    goals, goal_weights = random_points(5, 4, seed=1)
    large = energy_coefficient(goals * 50, goal_weights, places * 50, weights, 4)
    small = energy_coefficient(goals * 5, goal_weights, places * 5, weights, 4)
    assert torch.allclose(large, small, atol=0.02)


def test_raster_by_hand():
    found = rasterise(torch.tensor([[0.5, 0.25], [1.25, 0.5], [3.0, 3.0]]), torch.tensor([0.4, 0.4, 0.2]), 3)
    # A quarter down lies between the first two rows; a quarter beyond the border half of a point is outside.
    expected = torch.tensor([[0, 0.2, 0], [0, 0.2, 0.2], [0, 0, 0]]).flatten()
    assert torch.allclose(found, torch.cat([expected, torch.tensor([0.4])]), atol=1e-6)
    places, weights = random_points(3, 8)
    assert torch.allclose(rasterise(places, weights, 7).sum(-1), torch.ones(3, dtype=torch.float64))


def test_jensen_shannon_by_hand():
    t, p = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    # Half of each is apart, and costs log 2 there.
    assert math.isclose(jensen_shannon(t, p), math.log(2) / 2, rel_tol=1e-5)
    assert math.isclose(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), math.log(2), rel_tol=1e-5)


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
        expected += loss.distance(*goal, *pred) / 2
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
    found = run(each, student, exchanged, *pairs)
    expected = [
        each.distance(student.locations[0, q, 1 - h].flatten(0, 1), student.weights[0, q, 1 - h].flatten(),
                      student.locations[0, q, h].flatten(0, 1), student.weights[0, q, h].flatten())
        for q in range(3) for h in range(2)
    ]  # fmt: skip
    assert found > 0.01 and torch.allclose(found, torch.stack(expected).mean(), atol=1e-6)
    other = head_points(3, 3, 1, 2, seed=1)
    together = run(build_loss(heads="mean"), student, other, *pairs)
    assert torch.equal(run(each, student, other, *pairs), together)


def test_no_pair_costs_nothing():
    assert run(build_loss(), head_points(2, 1, 1, 2), head_points(2, 1, 1, 2), [0], [0], [0.0]) == 0


def deformable_decoders():
    return [name for name, cls in DECODER_REGISTRY if issubclass(cls, DeformableDecoder)]


def encode(model, inputs):
    images = model.preprocess(inputs)
    return model.encode(model.backbone(images.tensor), images)


@pytest.mark.parametrize("variant", [LEARNED, TWO_STAGE], ids=["learned", "two_stage"])
def test_kept_points_are_those_that_are_read(variant, inputs):
    """Over the image without its padding; taken back over the levels they give what the attention gave."""
    model = randomise(build_model(small_cfg(**variant))).eval()
    memory = encode(model, inputs)
    assert memory.mask.any()
    own, seen = model.queries(memory), []
    attention = model.decoder.layers[1].cross_attention
    attention.output_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    other = QueryGroup("other", own.content[:, :3], own.position[:, :3])
    outputs = model.decode(memory, [own, other], POINTS)
    kept = [outputs[name].sampled_attention[1] for name in ("own", "other")]
    assert [x.locations.shape for x in kept] == [(2, 7, 2, 3, 4, 2), (2, 3, 2, 3, 4, 2)]
    assert kept[0].locations.dtype == kept[0].weights.dtype == torch.float32
    assert torch.allclose(kept[0].weights.sum((3, 4)), torch.ones(()), atol=1e-5)
    values = attention.value_projection(memory.tokens).masked_fill(memory.mask.unsqueeze(-1), 0).unflatten(-1, (2, -1))
    locations = torch.cat([x.locations for x in kept], dim=1) * memory.valid_ratios[:, None, None, :, None, :]
    weights = torch.cat([x.weights for x in kept], dim=1)
    found = multi_scale_deformable_attention(values, memory.shapes, locations, weights)
    assert torch.allclose(found, seen[0], atol=1e-5)


def test_points_do_not_depend_on_the_padding(inputs):
    """Without offsets every point is its query's reference, in the image's own coordinates."""
    model = randomise(build_model(small_cfg(**LEARNED))).eval()
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attention.sampling_offsets.weight)
        torch.nn.init.zeros_(layer.cross_attention.sampling_offsets.bias)
    memory = encode(model, inputs)
    own = model.queries(memory)
    points = model.decode(memory, [own], POINTS)["own"].sampled_attention[0]
    reference = model.decoder.reference_points(own.position).sigmoid()
    assert torch.allclose(points.locations, reference[:, :, None, None, None, :].expand_as(points.locations), atol=1e-6)


def test_keeping_points_changes_nothing(inputs):
    model = randomise(build_model(small_cfg(**LEARNED))).eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    plain, kept = (model.decode(memory, [own], capture)["own"] for capture in (frozenset(), POINTS))
    assert torch.equal(plain.logits, kept.logits) and torch.equal(plain.boxes, kept.boxes)
    assert plain.sampled_attention is None and len(kept.sampled_attention) == 2


def test_every_deformable_decoder_offers_its_points():
    assert len(deformable_decoders()) >= 2
    for name in deformable_decoders():
        assert SAMPLED_ATTENTION in DECODER_REGISTRY.get(name).captures, name


@pytest.mark.parametrize("distance", ["energy", "js"])
@pytest.mark.parametrize(
    ("teacher", "student"), [(OTHER_SAMPLING, LEARNED), (TWO_STAGE, LEARNED), (OTHER_SAMPLING, TWO_STAGE)],
    ids=["other_sampling", "two_stage-learned", "learned-two_stage"],
)  # fmt: skip
def test_step_teaches_where_to_look(build_distiller, save_teacher, inputs, teacher, student, distance, monkeypatch):
    """Both matchers; one read of the device; by this loss alone the offsets and weights of every layer move."""
    model = build_distiller(
        student, save_teacher(**teacher), LOSSES, MODEL__DISTILL__SAMPLED_ATTENTION_LOSS__DISTANCE=distance
    )
    counter, copies = ReadCounter(), []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert counter.reads == [] and copies == [1]
    own = {n: v for n, v in losses.items() if "sampled_attention" in n}
    assert own.keys() == {f"loss_distill_sampled_attention_{g}{s}" for g in ("adaptive", "fixed") for s in ("_0", "")}
    assert all(0 < value < 1 for value in own.values())
    model.zero_grad()
    sum(value for name, value in model(inputs).items() if name in own).backward()
    for layer in model.student.decoder.layers:
        for part in (layer.cross_attention.sampling_offsets, layer.cross_attention.attention_weights):
            assert part.weight.grad.abs().sum() > 0 and part.weight.grad.isfinite().all()


def test_a_student_like_its_teacher_costs_nothing(build_distiller, save_teacher, inputs):
    model = build_distiller(LEARNED, save_teacher(**LEARNED), LOSSES)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    model.student.eval()  # so that normalisation is the teacher's too
    losses = model(inputs)
    assert all(value.abs() < 1e-4 for name, value in losses.items() if "sampled_attention" in name)


def test_mixed_precision_keeps_the_loss_in_float32(build_distiller, save_teacher):
    model = build_distiller(LEARNED, save_teacher(**OTHER_SAMPLING), LOSSES)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_inputs())
    found = {name: value for name, value in losses.items() if "sampled_attention" in name}
    assert found and all(value.dtype == torch.float32 and value.isfinite() for value in found.values())


@pytest.mark.parametrize(("teacher", "student", "who"), [({}, LEARNED, "teacher"), (LEARNED, {}, "student")])
def test_dense_decoders_are_refused_at_build(build_distiller, save_teacher, teacher, student, who):
    expected = rf"SampledAttentionLoss asks for sampled_attention, which the {who}'s ConditionalDecoder.*AttentionLoss"
    with pytest.raises(ConfigError, match=expected):
        build_distiller(student, save_teacher(**teacher), LOSSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "kl"}, "DISTANCE is 'kl'. Known: energy, js"),
        ({"pair_weight": "all"}, "PAIR_WEIGHT is 'all'. Known: equal, teacher_score"),
        ({"heads": "all"}, "HEADS is 'all'. Known: mean, each"),
    ],
)
def test_bad_keys_are_named(options, message):
    with pytest.raises(ConfigError, match=f"SAMPLED_ATTENTION_LOSS.{message}"):
        build_loss(**options)
