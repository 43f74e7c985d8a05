"""Deformable DETR keeps every promise of a decoder: levels, padding, groups, capture, gradients, refinement, start."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.errors import ConfigError
from detr_distill.structures import CAPTURES, SAMPLED_ATTENTION, SELF_ATTENTION, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs, small_cfg
from helpers.detr.deformable_detectors import PLAIN, REFINE, TWO_STAGE, build, every_variant
from helpers.steps import check_images_alone, encode, outputs_over_padding


def random_group(model, name: str, images: int, queries: int, **options) -> QueryGroup:
    generator = torch.Generator().manual_seed(queries)
    content, position = (torch.randn(images, queries, width, generator=generator) for width in model.queries.widths)
    return QueryGroup(name, content, position, **options)


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
    outputs = outputs_over_padding(model, inputs)
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
    assert model.decoder.captures >= {SELF_ATTENTION, SAMPLED_ATTENTION}
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
    check_images_alone(model, inputs)


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
