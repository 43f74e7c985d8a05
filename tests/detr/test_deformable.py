"""Deformable DETR: the attention by a naive loop, its start, the levels, two-stage queries, and every promise of a
decoder (groups, capture, gradients, no reads of the device), alone and in distillation."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.detr.deformable import DeformableAttention, multi_scale_deformable_attention
from detr_distill.detr.queries_deformable import _cell_boxes
from detr_distill.distill.students import StudentStep
from detr_distill.errors import ConfigError
from detr_distill.structures import CAPTURES, SAMPLED_ATTENTION, SELF_ATTENTION, Memory, QueryGroup

import pytest
import torch
from builders import ROOT, make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from distill.test_distiller import ReadCounter
from torch import Tensor

LEVELS = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage2", "stage3"],
    "MODEL__DETR__NUM_LEVELS": 3,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "DeformableEncoder",
}
PLAIN = {
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "LearnedContentQueries",
}
SINGLE = {**PLAIN, "MODEL__DETR__IN_FEATURES": ["stage3"], "MODEL__DETR__NUM_LEVELS": 1}
REFINE = {**PLAIN, "MODEL__DETR__DECODER__BOX_REFINEMENT": True}
TWO_STAGE = {
    **REFINE,
    "MODEL__DETR__DECODER__NAME": "DeformableBoxDecoder",
    "MODEL__DETR__QUERIES__NAME": "TwoStageQueries",
}
VARIANTS = {"plain": PLAIN, "single": SINGLE, "refine": REFINE, "two_stage": TWO_STAGE}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], **keys})))


def encode(model, inputs) -> Memory:
    images = model.preprocess(inputs)
    return model.encode(model.backbone(images.tensor), images)


def random_group(model, name: str, images: int, queries: int, **options) -> QueryGroup:
    generator = torch.Generator().manual_seed(queries)
    content, position = (torch.randn(images, queries, width, generator=generator) for width in model.queries.widths)
    return QueryGroup(name, content, position, **options)


def naive_attention(values: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 of the paper cell by cell: a cell's weight is the overlap of two unit tents around the point."""
    images, queries, heads, levels, points, _ = locations.shape
    output = values.new_zeros(images, queries, heads, values.shape[-1])
    for b, q, h, level, p in torch.cartesian_prod(
        *map(torch.arange, (images, queries, heads, levels, points))
    ).tolist():
        height, width = shapes[level]
        start = sum(rows * columns for rows, columns in shapes[:level])
        x, y = locations[b, q, h, level, p] * values.new_tensor([width, height]) - 0.5
        for row in range(height):
            for column in range(width):
                share = (1 - (x - column).abs()).clamp(min=0) * (1 - (y - row).abs()).clamp(min=0)
                value = values[b, start + row * width + column, h]
                output[b, q, h] = output[b, q, h] + weights[b, q, h, level, p] * share * value
    return output.flatten(2)


def attention_case(shapes=((3, 4), (2, 1))):
    """Points inside, between the border cells and the border, and outside; float64."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, sum(h * w for h, w in shapes), 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, len(shapes), 2, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 3, 2, len(shapes), 2, generator=generator, dtype=torch.float64)
    return values, list(shapes), locations, weights


def test_attention_equals_a_naive_loop_and_its_gradients_are_right():
    values, shapes, locations, weights = attention_case()
    found = multi_scale_deformable_attention(values, shapes, locations, weights)
    assert torch.allclose(found, naive_attention(values, shapes, locations, weights), atol=1e-12)
    leaves = [x.requires_grad_() for x in (values, locations, weights)]
    attention = lambda v, x, w: multi_scale_deformable_attention(v, shapes, x, w)  # noqa: E731
    assert torch.autograd.gradcheck(attention, leaves)
    loop = torch.autograd.grad(naive_attention(values, shapes, locations, weights).square().sum(), leaves)
    ours = torch.autograd.grad(attention(*leaves).square().sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(loop, ours, strict=True))


def test_half_precision_values_are_sampled_in_float32():
    values, shapes, locations, weights = attention_case()
    found = multi_scale_deformable_attention(values.bfloat16(), shapes, locations.float(), weights.float())
    assert found.dtype == torch.bfloat16
    exact = multi_scale_deformable_attention(values.bfloat16().double(), shapes, locations, weights)
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-6), "one rounding, that of the result"


def test_attention_starts_on_a_star_with_equal_weights():
    attention = DeformableAttention(width=16, num_heads=8, num_levels=2, num_points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    assert attention.sampling_offsets.weight.abs().max() == 0 == attention.attention_weights.weight.abs().max()
    for head, direction in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            assert torch.allclose(offsets[head, :, point], expected.expand(2, -1), atol=1e-5)
    # On constant values that surround the reference, equal weights give the value itself.
    tokens = torch.ones(1, 2 * 9 * 9, 16)
    memory = Memory(tokens, tokens, None, [(9, 9)] * 2, level_sizes=torch.full((2, 2), 9.0))
    found = attention(torch.randn(1, 1, 16), torch.full((1, 1, 2, 2), 0.5), tokens, memory)
    assert torch.allclose(found, attention.output_projection(attention.value_projection(tokens[:, :1])), atol=1e-5)


def test_box_references_scale_the_offsets():
    """The last point of a head lies on the box's border: point P of P, half the size away."""
    attention = DeformableAttention(width=8, num_heads=4, num_levels=1, num_points=4)
    memory = Memory(torch.zeros(1, 1, 8), torch.zeros(1), None, [(10, 20)], level_sizes=torch.tensor([[20.0, 10.0]]))
    offsets = attention.sampling_offsets.bias.view(1, 1, 4, 1, 4, 2)
    box = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(1, 1, 1, 4)
    last = attention._locations(offsets, box, memory)[0, 0, :, 0, -1]
    assert torch.allclose(last, torch.tensor([[0.6, 0.5], [0.5, 0.7], [0.4, 0.5], [0.5, 0.3]]), atol=1e-6)
    first = attention._locations(offsets, box[..., :2], memory)[0, 0, :, 0, 0]
    assert torch.allclose(first, torch.tensor([[0.55, 0.5], [0.5, 0.6], [0.45, 0.5], [0.5, 0.4]]), atol=1e-6)


def test_levels_know_their_extent():
    model = build("plain").eval()
    memory = encode(model, make_inputs(sizes=((40, 64), (64, 32)), counts=(1, 1)))
    assert memory.shapes == [(16, 16), (8, 8), (4, 4)] and memory.tokens.shape == memory.position.shape == (2, 336, 32)
    assert memory.level_sizes.tolist() == [[16, 16], [8, 8], [4, 4]]
    # Width, then height; the coarsest level's third row starts at pixel 32 of 40 and counts.
    assert memory.valid_ratios.tolist() == [[[1, 0.625], [1, 0.625], [1, 0.75]], [[0.5, 1], [0.5, 1], [0.5, 1]]]
    alone = encode(model, make_inputs(sizes=((40, 64),), counts=(1,)))
    assert alone.mask is None and alone.valid_ratios.tolist() == [[[1, 1]] * 3]


@every_variant
def test_content_of_the_padding_changes_nothing(variant, inputs):
    """Whatever the neck leaves in the padding, encoder, queries and decoder do not see it."""
    model = build(variant).eval()
    images = model.preprocess(inputs)
    memory = model.input_projection(model.backbone(images.tensor), images)
    assert memory.mask.any()
    outputs = []
    for filling in (0.0, 9.0):
        filled = dataclasses.replace(memory, tokens=memory.tokens.masked_fill(memory.mask.unsqueeze(-1), filling))
        filled.tokens = model.encoder(filled)
        outputs.append(model.decode(filled, [model.queries(filled)])["own"])
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-6)
    assert torch.allclose(outputs[0].boxes, outputs[1].boxes, atol=1e-6)


@every_variant
@pytest.mark.parametrize("capture", [frozenset(), frozenset({SELF_ATTENTION})])
def test_groups_do_not_see_each_other(variant, capture, inputs):
    model = build(variant).eval()
    memory = encode(model, inputs)
    own, other = model.queries(memory), random_group(model, "other", 2, 5)
    alone = model.decode(memory, [own], capture)["own"]
    together = model.decode(memory, [own, other], capture)
    assert torch.allclose(alone.logits, together["own"].logits, atol=1e-5)
    assert torch.allclose(alone.boxes, together["own"].boxes, atol=1e-5)
    seeing = model.decode(memory, [own, dataclasses.replace(other, sees=("own",))], capture)
    assert torch.allclose(alone.logits, seeing["own"].logits, atol=1e-5), "seeing is one-way"
    assert not torch.allclose(seeing["other"].logits, together["other"].logits, atol=1e-4)


@every_variant
def test_captured_maps_are_distributions_and_change_nothing(variant, inputs):
    model = build(variant, MODEL__DETR__DROPOUT=0.5)
    assert model.decoder.captures == {SELF_ATTENTION, SAMPLED_ATTENTION}
    memory = encode(model.eval(), inputs)
    own = model.queries(memory)
    plain, captured = (model.decode(memory, [own], capture)["own"] for capture in (frozenset(), CAPTURES))
    assert torch.allclose(plain.logits, captured.logits, atol=1e-5) and plain.self_attention is None
    model.train()
    maps = torch.stack(model.decode(memory, [own], frozenset({SELF_ATTENTION}))["own"].self_attention)
    assert maps.shape == (2, 2, 2, 7, 7) and torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)


@every_variant
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
def test_losses_have_every_layer_and_reach_every_parameter(variant, counts):
    model = build(variant).train()
    losses = model(make_inputs(counts=counts))
    suffixes = ("", "_0", "_encoder") if variant == "two_stage" else ("", "_0")
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in suffixes}
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_variant
def test_detections_do_not_depend_on_the_batch(variant):
    model = build(variant).eval()
    inputs = make_inputs(sizes=((40, 56), (64, 72), (24, 48)), counts=(1, 1, 1), labels=False)
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            (alone,) = model([entry])
            assert torch.equal(alone["instances"].scores, expected["instances"].scores)


@every_variant
def test_batch_without_padding_equals_its_images(variant):
    """Reference points are then made once for all images."""
    model = build(variant).eval()
    inputs = make_inputs(sizes=((48, 64), (48, 64)), counts=(1, 1), labels=False)
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            (alone,) = model([entry])
            assert torch.allclose(alone["instances"].scores, expected["instances"].scores, atol=1e-5)
            boxes = (x["instances"].pred_boxes.tensor for x in (alone, expected))
            assert torch.allclose(*boxes, atol=1e-2)


@every_variant
def test_boxes_stay_in_float32_under_autocast(variant, inputs):
    model = build(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        memory = encode(model, inputs)
        own = model.queries(memory)
        output = model.decode(memory, [own])["own"]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


def test_refinement_starts_a_layer_at_the_box_before_it_without_gradient(inputs):
    model = build("refine").eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    seen = []
    model.decoder.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    output = model.decode(memory, [own])["own"]
    expected = output.boxes[0][:, :, None] * memory.valid_ratios.repeat(1, 1, 2)[:, None]
    assert torch.allclose(seen[0], expected, atol=1e-6) and not seen[0].requires_grad


def test_two_stage_queries_are_the_best_tokens():
    model = build("two_stage").eval()
    memory = encode(model, make_inputs())
    own = model.queries(memory)
    scores, boxes = memory.proposals.logits[0, ..., 0], memory.proposals.boxes[0]
    for image in range(2):
        best = scores[image].sort(descending=True).indices[:7]
        assert torch.allclose(own.position[image].sigmoid(), boxes[image, best], atol=1e-6)
    assert own.content.abs().max() == 0
    assert not own.position.requires_grad and memory.proposals.boxes.requires_grad
    assert (boxes[memory.mask] == 1).all(), "tokens of the padding propose nothing"
    model.queries.num_queries = 10_000
    everything = model.queries(memory).position
    assert everything.shape == (2, memory.tokens.shape[1], 4) and everything.isfinite().all()


def test_first_boxes_are_squares_at_the_cells():
    model = build_model(small_cfg(**TWO_STAGE)).eval()  # box heads start at zero
    memory = encode(model, make_inputs(sizes=((64, 64),), counts=(1,)))
    model.queries(memory)
    levels = memory.proposals.boxes[0, 0].split([256, 64, 16])
    for level, (boxes, side) in enumerate(zip(levels, (16, 8, 4), strict=True)):
        cell = boxes.view(side, side, 4)[1, 2]
        expected = torch.tensor([2.5 / side, 1.5 / side, 0.05 * 2**level, 0.05 * 2**level])
        assert torch.allclose(cell, expected, atol=1e-5)


def test_tokens_at_the_border_propose_nothing():
    """Half a cell of 64 is 0.008 of the image, less than 0.01; half a cell of 40 is more."""
    for columns, border in ((64, 1), (40, 0)):
        tokens = torch.zeros(1, 2 * columns, 4)
        sizes, ratios = torch.tensor([[columns, 2.0]]), torch.ones(1, 1, 2)
        memory = Memory(tokens, tokens, None, [(2, columns)], level_sizes=sizes, valid_ratios=ratios)
        boxes, usable = _cell_boxes(memory)
        expected = torch.ones(2, columns, dtype=torch.bool)
        expected[:, :border] = expected[:, columns - border :] = False
        assert torch.equal(usable.view(2, columns), expected) and torch.equal(boxes.isfinite().all(-1), usable[..., 0])


def test_encoder_loss_knows_objects_but_no_classes(inputs):
    model = build("two_stage").train()
    before = model(inputs)
    for entry in inputs:
        entry["instances"].gt_classes = (entry["instances"].gt_classes + 1) % 5
    after = model(inputs)
    encoder = {name for name in before if "encoder" in name}
    assert len(encoder) == 3 and all(before[name] == after[name] for name in encoder)
    assert before["loss_class"] != after["loss_class"]


def test_published_start():
    model = build_model(small_cfg(**REFINE))
    sizes = [heads.box_head.layers[-1].bias[2:].tolist() for heads in model.decoder.heads]
    assert sizes == [[-2, -2], [0, 0]]
    assert [heads.box_head.layers[-1].bias.abs().max().item() for heads in build_two_stage_heads()] == [0, 0, 0]
    layers = [layer.cross_attention for layer in model.decoder.layers] + [model.encoder.layers[0].attention]
    assert all(layer.sampling_offsets.weight.abs().max() == 0 for layer in layers), (
        "no rule for linear layers came after"
    )
    assert all(heads.class_head.bias[0].item() == pytest.approx(-math.log(99)) for heads in model.decoder.heads)


def build_two_stage_heads():
    model = build_model(small_cfg(**TWO_STAGE))
    return [*model.decoder.heads, model.queries.heads]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**PLAIN, "MODEL__DETR__NECK__NAME": "SingleLevelNeck", "MODEL__DETR__IN_FEATURES": ["stage3"]},
         "NECK.NAME is SingleLevelNeck; DeformableEncoder samples 3 levels. Set it to MultiLevelNeck"),
        ({**PLAIN, "MODEL__DETR__NECK__NAME": "NoSuchNeck"}, "MultiLevelNeck, SingleLevelNeck"),
        ({**PLAIN, "MODEL__DETR__QUERIES__NAME": "TwoStageQueries"}, "positions are 4 wide; DeformableDecoder reads"),
        ({**TWO_STAGE, "MODEL__DETR__QUERIES__NAME": "LearnedContentQueries"}, "DeformableBoxDecoder reads 4"),
        ({**TWO_STAGE, "MODEL__DETR__DECODER__BOX_REFINEMENT": False}, "BOX_REFINEMENT is False"),
        ({**PLAIN, "MODEL__DETR__HIDDEN_DIM": 16}, "HIDDEN_DIM is 16; MultiLevelNeck"),
        ({**PLAIN, "MODEL__DETR__NUM_LEVELS": 1}, "this neck takes 1 to MODEL.DETR.NUM_LEVELS = 1 of"),
        ({**PLAIN, "MODEL__DETR__IN_FEATURES": ["res5"]}, r"IN_FEATURES is \['res5'\].* MODEL.TIMM or MODEL.TOR"),
        ({"MODEL__DETR__IN_FEATURES": ["stage2", "stage3"]}, "this neck takes one of"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**keys))


def test_models_of_one_level_keep_their_names():
    weights = torch.load(ROOT / "weights/digits_teacher.pth", map_location="cpu", weights_only=True)
    names = {name for name in weights.get("model", weights) if name.startswith("input_projection")}
    assert names == {"input_projection.weight", "input_projection.bias"}
    assert names == {name for name in build_model(small_cfg()).state_dict() if name.startswith("input_projection")}


CONDITIONAL = {"MODEL__DETR__HIDDEN_DIM": 16}
SELF_ONLY = {"MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0}


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
    ("teacher", "student"),
    [
        (PLAIN, PLAIN),
        (TWO_STAGE, TWO_STAGE),
        ({**TWO_STAGE, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_QUERIES": 9}, {**PLAIN}),
        ({**REFINE, "MODEL__DETR__DECODER__NUM_LAYERS": 3}, TWO_STAGE),
        (PLAIN, CONDITIONAL),
        (TWO_STAGE, CONDITIONAL),
        (CONDITIONAL, SINGLE),
        (CONDITIONAL, TWO_STAGE),
    ],
    ids=["plain", "two_stage", "two_stage-plain", "refine-two_stage", "plain-conditional", "two_stage-conditional",
         "conditional-single", "conditional-two_stage"],
)  # fmt: skip
def test_distillation_step(distiller, inputs, teacher, student, monkeypatch):
    """Both matchers, predictions and self-attention; one read of the device, a gradient for every parameter."""
    model = distiller(teacher, {**student, **SELF_ONLY})
    counter, copies = ReadCounter(), []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert counter.reads == [] and copies == [1]
    for name in ("adaptive", "fixed"):
        assert {f"loss_distill_{t}_{name}" for t in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert "loss_class_fixed" in losses and ("loss_class_encoder" in losses) == (student is TWO_STAGE)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_boxes_of_a_two_stage_teacher_enter_the_student_unchanged(distiller, inputs):
    wide = {**TWO_STAGE, "MODEL__DETR__HIDDEN_DIM": 64}
    model = distiller(wide, {**TWO_STAGE, **SELF_ONLY})
    knowledge = model.teacher(StudentStep(inputs), frozenset())
    (group,) = model.matchers["FixedMatcher"].extra_groups(knowledge, 2)
    assert group.content.shape == (2, 7, 32) and torch.equal(group.position, knowledge.queries.position)


@pytest.mark.parametrize(("teacher", "student"), [(PLAIN, PLAIN), (PLAIN, CONDITIONAL), (CONDITIONAL, PLAIN)])
def test_cross_attention_is_refused_at_build(distiller, teacher, student):
    with pytest.raises(
        ConfigError, match=r"AttentionLoss asks for cross_attention, which the \w+'s Deformable.*CROSS_WEIGHT 0.0"
    ):
        distiller(teacher, student)
