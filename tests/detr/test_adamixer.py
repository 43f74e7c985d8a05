"""AdaMixer: sampling, mixing, boxes and the attention's bias by hand, and every promise of a decoder, alone and in
distillation."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.detr import adamixer
from detr_distill.detr.adamixer import AdaptiveMixing, AdaptiveSampling
from detr_distill.detr.attention import attend
from detr_distill.errors import ConfigError
from detr_distill.structures import CAPTURES, SELF_ATTENTION, Memory, QueryGroup

import pytest
import torch
import torch.nn.functional as F
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from distill.test_distiller import ReadCounter
from torch import Tensor

ADAMIXER = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage1", "stage2", "stage3"],
    "MODEL__DETR__NECK__NAME": "AdaMixerNeck",
    "MODEL__DETR__ENCODER__NUM_LAYERS": 0,
    "MODEL__DETR__DECODER__NAME": "AdaMixerDecoder",
    "MODEL__DETR__QUERIES__NAME": "AdaMixerQueries",
    "MODEL__DETR__ADAMIXER__IN_POINTS": 5,
    "MODEL__DETR__ADAMIXER__OUT_POINTS": 6,
}
# Of the second stage, where random weights enlarge the first one's: seen 2e-5.
ROUNDING = 1e-4


def build(**keys):
    return randomise(build_model(small_cfg(**{**ADAMIXER, **keys})))


def encode(model, inputs) -> Memory:
    images = model.preprocess(inputs)
    return model.encode(model.backbone(images.tensor), images)


def random_group(name: str, queries: int, seed: int = 0, **options) -> QueryGroup:
    """Content, and boxes that differ from each other, of two images."""
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(2, queries, 32, generator=generator)
    return QueryGroup(name, content, torch.randn(2, queries, 4, generator=generator), **options)


def flat_memory(shapes, width: int = 8) -> Memory:
    """One image without padding; each level's tokens are its own number."""
    tokens = torch.cat([torch.full((1, h * w, width), float(level)) for level, (h, w) in enumerate(shapes)], dim=1)
    sizes = torch.tensor([(w, h) for h, w in shapes]).float()
    return Memory(tokens, tokens, None, list(shapes), sizes, torch.ones(1, len(shapes), 2))


def test_positions_of_boxes_by_hand():
    """A box of 32 x 128 pixels: z = log2(64) = 6, r = log2(4) = 2."""
    boxes, extent = torch.tensor([[[0.5, 0.25, 0.25, 0.5]]]), torch.tensor([[[128.0, 256.0]]])
    positions = adamixer.boxes_to_positions(boxes, extent)
    assert torch.allclose(positions, torch.tensor([64.0, 64.0, 6.0, 2.0]))
    assert torch.allclose(adamixer.position_sizes(positions), torch.tensor([32.0, 128.0]))
    assert torch.allclose(adamixer.positions_to_boxes(positions, extent), boxes)


def test_move_by_hand():
    """The centre moves by multiples of 2^z = 8, whatever the shape; z and r by sums."""
    moved = adamixer.move(torch.tensor([[[10.0, 20.0, 3.0, 1.0]]]), torch.tensor([[[0.5, -1.0, 0.25, -2.0]]]))
    assert torch.allclose(moved, torch.tensor([14.0, 12.0, 3.25, -1.0]))


def test_position_embedding_by_hand():
    embedding = adamixer.embed_positions(torch.tensor([[[500.0, 0.0, 6.0, -1.0]]]), 16).view(4, 4)
    for row, value in zip(embedding.tolist(), (0.5, 0.0, 6.0, -1.0), strict=True):
        assert row == pytest.approx(
            [math.sin(value), math.cos(value), math.sin(value / 100), math.cos(value / 100)], abs=1e-5
        )


def test_log_intersection_by_hand():
    """Boxes of 8 x 8 and 16 x 16 around one centre, and one of 8 x 8 far away."""
    positions = torch.tensor([[[20.0, 20.0, 3.0, 0.0], [20.0, 20.0, 4.0, 0.0], [90.0, 90.0, 3.0, 0.0]]])
    covered = torch.tensor([[1.0, 1.0, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(adamixer.log_intersection(positions), (covered + 1e-7).log())
    shifted = torch.tensor([[[20.0, 20.0, 3.0, 0.0], [24.0, 22.0, 3.0, 0.0]]])
    assert adamixer.log_intersection(shifted)[0, 0, 1].item() == pytest.approx(math.log(0.5 * 0.75), abs=1e-5)


def test_points_without_offsets_lie_at_the_centre_and_offsets_scale_with_the_box():
    sampling = AdaptiveSampling(width=8, num_groups=2, num_points=3)
    positions = torch.tensor([[[40.0, 60.0, 4.0, 2.0], [10.0, 20.0, 2.0, 0.0]]])  # 8 x 32 and 4 x 4 pixels
    torch.nn.init.zeros_(sampling.sampling_offsets.bias)
    points = sampling.points(torch.randn(1, 2, 8), positions)
    assert torch.equal(points, positions[:, :, None, None, :3].expand(1, 2, 2, 3, 3))
    with torch.no_grad():
        sampling.sampling_offsets.bias.view(2, 3, 3)[1, 2] = torch.tensor([0.5, -0.25, -1.0])
    moved = sampling.points(torch.randn(1, 2, 8), positions)
    assert torch.allclose(moved[0, :, 1, 2], torch.tensor([[44.0, 52.0, 3.0], [12.0, 19.0, 1.0]]))
    moved[:, :, 1, 2] = points[:, :, 1, 2]
    assert torch.equal(moved, points), "an offset moves one point of one group"


def test_published_start_of_the_offsets():
    offsets = AdaptiveSampling(width=8, num_groups=2, num_points=200).sampling_offsets
    assert offsets.weight.abs().max() == 0
    dx, dy, dz = offsets.bias.view(-1, 3).unbind(-1)
    assert (dz == -1).all()
    for values in (dx, dy):
        assert values.abs().max() <= 0.5 and values.min() < -0.4 and values.max() > 0.4


def test_places_and_weights_on_levels_by_hand():
    """Strides 4, 8, 16 are z = 2, 3, 4; at z = 3 the outer levels have exp(-1 / 2) of the middle one's weight."""
    memory = flat_memory([(8, 16), (4, 8), (2, 4)])
    places, weights = AdaptiveSampling.on_levels(torch.tensor([16.0, 8.0, 3.0]), memory)
    assert torch.allclose(places, torch.tensor([0.25, 0.25]).expand(3, 2))
    outer = math.exp(-0.5)
    expected = torch.tensor([outer, 1.0, outer]) / (1 + 2 * outer)
    assert torch.allclose(weights, expected)
    # A level that was rounded up to whole cells is wider in pixels than the finest.
    rounded, _ = AdaptiveSampling.on_levels(torch.tensor([16.0, 8.0, 3.0]), flat_memory([(7, 15), (4, 8)]))
    assert torch.allclose(rounded, torch.tensor([[16 / 60, 8 / 28], [16 / 64, 8 / 32]]))


def test_samples_are_weighted_levels_of_the_groups_own_channels():
    memory = flat_memory([(8, 8), (4, 4)])
    sampling = AdaptiveSampling(width=8, num_groups=2, num_points=3)
    torch.nn.init.zeros_(sampling.sampling_offsets.bias)
    tokens = memory.tokens + torch.tensor([0.0, 10, 20, 30, 40, 50, 60, 70])
    positions = torch.tensor([[[16.0, 16.0, 2.5, 0.0], [16.0, 16.0, 30.0, 0.0]]])
    found = sampling(torch.randn(1, 2, 8), positions, tokens, memory)
    channels = torch.arange(0.0, 80, 10).view(2, 1, 4).expand(2, 3, 4)
    assert torch.allclose(found[0, 0], channels + 0.5, atol=1e-5), "halfway between two levels"
    assert torch.allclose(found[0, 1], channels + 1, atol=1e-5), "far above, the coarsest level alone"


def test_samples_equal_grid_sample_point_by_point():
    """Every group, point and query on random levels, the bilinear reading of torch."""
    generator = torch.Generator().manual_seed(0)
    memory = flat_memory([(8, 12), (4, 6)])
    memory.tokens = torch.randn(2, 120, 8, generator=generator)
    sampling = randomise(AdaptiveSampling(width=8, num_groups=2, num_points=3))
    content = torch.randn(2, 4, 8, generator=generator)
    positions = torch.rand(2, 4, 4, generator=generator) * torch.tensor([48.0, 32.0, 3.0, 1.0])
    found = sampling(content, positions, memory.tokens, memory)
    points = sampling.points(content, positions)
    _, weights = sampling.on_levels(points, memory)
    levels = memory.tokens.split([96, 24], dim=1)
    for b, q, g, p in torch.cartesian_prod(*map(torch.arange, (2, 4, 2, 3))).tolist():
        grid = (points[b, q, g, p, :2] / torch.tensor([48.0, 32.0]) * 2 - 1).view(1, 1, 1, 2)
        expected = torch.zeros(4)
        for level, shape in enumerate(memory.shapes):
            cells = levels[level][b, :, 4 * g : 4 * g + 4].T.unflatten(1, shape)[None]
            expected += weights[b, q, g, p, level] * F.grid_sample(cells, grid, align_corners=False).view(4)
        assert torch.allclose(found[b, q, g, p], expected, atol=1e-5)


def test_mixing_equals_matrix_products_of_each_query():
    mixing = randomise(AdaptiveMixing(width=8, num_groups=2, in_points=3, out_points=5))
    content, samples = torch.randn(2, 3, 8), torch.randn(2, 3, 2, 3, 4)
    found = mixing(content, samples)
    for b, q in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        values = mixing.matrices(content[b, q]).view(2, 16 + 15)
        rows = []
        for group in range(2):
            channel, point = values[group, :16].view(4, 4), values[group, 16:].view(5, 3)
            mixed = samples[b, q, group] @ channel
            mixed = ((mixed - mixed.mean()) / (mixed.var(correction=0) + 1e-5).sqrt()).relu()
            mixed = point @ mixed
            rows.append(((mixed - mixed.mean()) / (mixed.var(correction=0) + 1e-5).sqrt()).relu())
        assert torch.allclose(found[b, q], mixing.output(torch.cat(rows).flatten()), atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_bias_by_hand(masked):
    query, key, value = (torch.randn(2, 2, 4, 3) for _ in range(3))
    bias, mask = torch.randn(2, 2, 4, 4), torch.eye(4, dtype=torch.bool) if masked else None
    scores = query @ key.transpose(-2, -1) / math.sqrt(3) + bias
    expected = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)
    output, attention = attend(query, key, value, mask=mask, bias=bias, capture=True)
    assert torch.allclose(attention, expected, atol=1e-6)
    assert torch.allclose(output, (expected @ value).transpose(1, 2).flatten(2), atol=1e-6)
    fused, _ = attend(query, key, value, mask=mask, bias=bias)
    assert torch.allclose(fused, output, atol=1e-6)


def test_bias_has_the_same_gradient_with_and_without_capture():
    query, key, value = (torch.randn(1, 2, 4, 3) for _ in range(3))
    weight = torch.rand(2, 1, 1, requires_grad=True)
    bias = torch.randn(1, 1, 4, 4)
    gradients = []
    for capture in (False, True):
        output, _ = attend(query, key, value, bias=weight * bias, capture=capture)
        gradients += torch.autograd.grad(output.square().sum(), weight)
    assert gradients[0].abs().min() > 0 and torch.allclose(*gradients, rtol=1e-3, atol=1e-5)


def test_queries_start_as_the_whole_image(inputs):
    model = build().eval()
    own = model.queries(encode(model, inputs))
    assert own.content.shape == (2, 7, 32) and own.position.shape == (2, 7, 4)
    assert torch.allclose(own.position.sigmoid(), torch.tensor([0.5, 0.5, 1.0, 1.0]), atol=1e-4)
    assert own.content.mean(-1).abs().max() < 1e-5 and not own.position.requires_grad
    assert not [name for name in model.state_dict() if "start" in name]


def test_first_boxes_are_the_images_and_classes_are_rare(inputs):
    """Box heads start at zero: the untrained decoder leaves every box where it was."""
    model = build_model(small_cfg(**ADAMIXER)).eval()
    memory = encode(model, inputs)
    assert memory.mask.any()
    output = model.decode(memory, [model.queries(memory)])["own"]
    assert torch.allclose(output.boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]), atol=1e-4)
    assert all(heads.class_head[-1].bias[0].item() == pytest.approx(-math.log(99)) for heads in model.decoder.heads)
    assert all(layer.mixing.matrices.weight.abs().max() == 0 for layer in model.decoder.layers)
    assert all(layer.mixing.matrices.bias.abs().max() > 0 for layer in model.decoder.layers)


def test_image_extent_leaves_the_padding_out():
    model = build().eval()
    memory = encode(model, make_inputs(sizes=((40, 64), (64, 32)), counts=(1, 1)))
    # The finest level has stride 2 here and counts as 4: units are half pixels. (width, height).
    assert adamixer.image_extent(memory).tolist() == [[[128.0, 80.0]], [[64.0, 128.0]]]


def test_a_stage_starts_at_the_box_before_it_without_gradient(inputs):
    model = build().eval()
    memory = encode(model, inputs)
    seen: list[Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    output = model.decode(memory, [random_group("own", 6)])["own"]
    expected = adamixer.boxes_to_positions(output.boxes[0], adamixer.image_extent(memory))
    assert torch.allclose(seen[1], expected, atol=1e-3) and not seen[1].requires_grad
    assert output.boxes.requires_grad and not torch.allclose(seen[0], seen[1], atol=1e-2)


@pytest.mark.parametrize("capture", [frozenset(), frozenset({SELF_ATTENTION})])
def test_groups_do_not_see_each_other(capture, inputs):
    model = build().eval()
    memory = encode(model, inputs)
    own, other = random_group("own", 7), random_group("other", 5, seed=1)
    alone = model.decode(memory, [own], capture)["own"]
    together = model.decode(memory, [own, other], capture)
    assert torch.allclose(alone.logits, together["own"].logits, atol=ROUNDING)
    assert torch.allclose(alone.boxes, together["own"].boxes, atol=ROUNDING)
    seeing = model.decode(memory, [own, dataclasses.replace(other, sees=("own",))], capture)
    assert torch.allclose(alone.logits, seeing["own"].logits, atol=ROUNDING), "seeing is one-way"
    assert not torch.allclose(seeing["other"].logits, together["other"].logits, atol=10 * ROUNDING)


def test_permuted_queries_permute_the_outputs(inputs):
    model = build().eval()
    memory = encode(model, inputs)
    own = random_group("own", 7)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    shuffled = QueryGroup("own", own.content[:, order], own.position[:, order])
    expected, found = (model.decode(memory, [group], frozenset({SELF_ATTENTION}))["own"] for group in (own, shuffled))
    assert torch.allclose(expected.logits[:, :, order], found.logits, atol=ROUNDING)
    assert torch.allclose(expected.boxes[:, :, order], found.boxes, atol=ROUNDING)
    for a, b in zip(expected.self_attention, found.self_attention, strict=True):
        assert torch.allclose(a[..., order, :][..., order], b, atol=ROUNDING)


def test_captured_maps_are_distributions_and_change_nothing(inputs):
    model = build(MODEL__DETR__DROPOUT=0.5)
    assert model.decoder.captures == CAPTURES - {"cross_attention"}
    memory = encode(model.eval(), inputs)
    own = random_group("own", 7)
    plain, captured = (model.decode(memory, [own], capture)["own"] for capture in (frozenset(), CAPTURES))
    assert torch.allclose(plain.logits, captured.logits, atol=ROUNDING) and plain.self_attention is None
    model.train()
    maps = torch.stack(model.decode(memory, [own], frozenset({SELF_ATTENTION}))["own"].self_attention)
    assert maps.shape == (2, 2, 2, 7, 7) and torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)


def test_content_of_the_padding_changes_nothing(inputs):
    model = build().eval()
    images = model.preprocess(inputs)
    memory = model.input_projection(model.backbone(images.tensor), images)
    assert memory.mask.any()
    first, second = (
        model.decode(
            dataclasses.replace(memory, tokens=memory.tokens.masked_fill(memory.mask.unsqueeze(-1), filling)),
            [random_group("own", 7)],
        )["own"]
        for filling in (0.0, 9.0)
    )
    assert torch.equal(first.logits, second.logits) and torch.equal(first.boxes, second.boxes)


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_losses_have_every_layer_and_reach_every_parameter(counts, classification):
    model = build(MODEL__DETR__LOSS__CLASSIFICATION=classification).train()
    losses = model(make_inputs(counts=counts))
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in ("", "_0")}
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_step_reads_the_device_once(inputs, monkeypatch):
    model = build().train()
    counter, copies = ReadCounter(), []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with counter:
        sum(model(inputs).values()).backward()
    assert counter.reads == [] and copies == [1]


@pytest.mark.parametrize("sizes", [((40, 56), (64, 72), (24, 48)), ((48, 64), (48, 64), (48, 64))])
def test_detections_do_not_depend_on_the_batch(sizes):
    model = build().eval()
    inputs = make_inputs(sizes=sizes, counts=(1, 1, 1), labels=False)
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            (alone,) = model([entry])
            assert torch.allclose(alone["instances"].scores, expected["instances"].scores, atol=1e-5)
            boxes = (x["instances"].pred_boxes.tensor for x in (alone, expected))
            assert torch.allclose(*boxes, atol=1e-2)


def test_boxes_stay_in_float32_under_autocast(inputs):
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        memory = encode(model, inputs)
        output = model.decode(memory, [model.queries(memory)])["own"]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__DETR__NECK__NAME": "SingleLevelNeck", "MODEL__DETR__IN_FEATURES": ["stage3"]},
         "NECK.NAME is SingleLevelNeck; AdaMixerDecoder samples 1 levels. Set it to AdaMixerNeck"),
        ({"MODEL__DETR__QUERIES__NAME": "LearnedQueries"}, "positions are 32 wide; AdaMixerDecoder reads 4"),
        ({"MODEL__DETR__IN_FEATURES": ["stage1", "stage3"]}, r"of strides \[2, 8\]; AdaMixer wants each level"),
        ({"MODEL__DETR__HIDDEN_DIM": 16}, "HIDDEN_DIM is 16; AdaMixerNeck normalises 32 groups"),
        ({"MODEL__DETR__ADAMIXER__NUM_GROUPS": 5}, "NUM_GROUPS = 5 does not divide"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**{**ADAMIXER, **keys}))


CONDITIONAL = {"MODEL__DETR__HIDDEN_DIM": 16}
DAB = {"MODEL__DETR__DECODER__NAME": "DabDecoder", "MODEL__DETR__QUERIES__NAME": "AnchorQueries"}
SELF_ONLY = {"MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0}
BOTH, ADAPTIVE = ["AdaptiveMatcher", "FixedMatcher"], ["AdaptiveMatcher"]


@pytest.fixture
def distiller(tmp_path):
    """Builds a randomised student with a randomised frozen teacher, each from its overrides."""

    def make(teacher: dict, student: dict):
        cfg = small_cfg(**teacher)
        (tmp_path / "teacher.yaml").write_text(cfg.dump())
        torch.save({"model": randomise(build_model(cfg), 1).state_dict()}, tmp_path / "teacher.pth")
        keys = {
            "MODEL__META_ARCHITECTURE": "DistillDetector",
            "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(tmp_path / "teacher.yaml"),
            "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "teacher.pth"),
        }
        model = build_model(small_cfg(**keys, **student)).train()
        randomise(model.student, 2)
        return model

    return make


@pytest.mark.parametrize(
    ("teacher", "student", "matchers"),
    [
        (ADAMIXER, ADAMIXER, BOTH),
        ({**ADAMIXER, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__DECODER__NUM_LAYERS": 3}, ADAMIXER, BOTH),
        (ADAMIXER, CONDITIONAL, ADAPTIVE),
        (ADAMIXER, CONDITIONAL, BOTH),
        (CONDITIONAL, ADAMIXER, BOTH),
        (DAB, ADAMIXER, BOTH),
    ],
    ids=["same", "wide", "conditional_adaptive", "conditional", "from_conditional", "from_dab"],
)
def test_distillation_step(distiller, inputs, teacher, student, matchers, monkeypatch):
    """Predictions and self-attention; one read of the device, a gradient for every parameter."""
    model = distiller(teacher, {**student, **SELF_ONLY, "MODEL__DISTILL__MATCHERS": matchers})
    counter, copies = ReadCounter(), []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert counter.reads == [] and copies == [1]
    for name in ("adaptive", "fixed")[: len(matchers)]:
        assert {f"loss_distill_{t}_{name}" for t in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert ("loss_class_fixed" in losses) == (matchers is BOTH)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize(
    ("teacher", "student"), [(ADAMIXER, ADAMIXER), (ADAMIXER, CONDITIONAL), (CONDITIONAL, ADAMIXER)]
)
def test_cross_attention_is_refused_at_build(distiller, teacher, student):
    with pytest.raises(
        ConfigError, match=r"AttentionLoss asks for cross_attention, which the \w+'s AdaMixer.*CROSS_WEIGHT"
    ):
        distiller(teacher, student)
