"""SMCA-DETR: the Gaussian, its places on the levels, the weighing of levels and the multi-scale encoder by hand.

What it promises like every decoder with dense maps is in decoders/test_dense.py.
"""

from __future__ import annotations

import dataclasses
import math

from detr_distill.detr.layers.attention import split_heads
from detr_distill.detr.layers.smca import SMALLEST_LOG, ModulatedAttention, SpatialModulation, cell_axes
from detr_distill.errors import ConfigError
from detr_distill.structures import CROSS_ATTENTION, Memory

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.detr.dense_detectors import MULTI_SCALE, SMCA
from helpers.steps import encode
from torch import Tensor

VARIANTS = {"single": SMCA, "multi_scale": MULTI_SCALE}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], **keys})))


def make_modulation(offset: list[float], scale: list[float], smoothness: float) -> SpatialModulation:
    """The same offsets (x, y) and scales (x, y) of each head for every query."""
    modulation = SpatialModulation(width=4, num_heads=len(offset) // 2, smoothness=smoothness)
    for head, values in ((modulation.offset_head, offset), (modulation.scale_head, scale)):
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor(values)
    return modulation


def flat_memory(shapes: list[tuple[int, int]], mask: Tensor | None = None, images: int = 1, width: int = 4) -> Memory:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, sum(h * w for h, w in shapes), width, generator=generator)
    return Memory(tokens, torch.randn(tokens.shape, generator=generator), mask, shapes)


def test_gaussian_on_four_cells_by_hand():
    """Centre (0.5, 1), offset (0.5, 0), scales (2, 1), smoothness 2: minus (4 dx^2 + dy^2) / 2 with dx = x - 1."""
    modulation = make_modulation([0.5, 0.0], [2.0, -1.0], smoothness=2.0)
    axes, _ = cell_axes(flat_memory([(2, 2)]))
    (found,) = modulation(torch.randn(1, 1, 4), torch.tensor([[[0.5, 1.0]]]), axes)
    expected = torch.tensor([-2.5, -0.5, -2.0, 0.0])  # (0, 0), (1, 0), (0, 1), (1, 1)
    assert torch.allclose(found, expected.view(1, 1, 1, 4))
    # With equal keys the attention is the Gaussian itself, scaled to a distribution.
    attention = ModulatedAttention(4, 1, dropout=0.0)
    for value in attention.query_projection.parameters():
        torch.nn.init.zeros_(value)
    _, attended = attention.over_levels(torch.randn(1, 1, 4), flat_memory([(2, 2)]), [found], None, capture=True)
    gaussian = expected.exp()
    assert torch.allclose(attended.flatten(), gaussian / gaussian.sum(), atol=1e-6)


def test_heads_and_queries_have_their_own_gaussian():
    """Against the formula, entry by entry, with random parameters and a rectangular map."""
    modulation = randomise(SpatialModulation(width=4, num_heads=3, smoothness=8.0))
    query, centre = torch.randn(2, 5, 4), torch.rand(2, 5, 2) * 4
    (found,) = modulation(query, centre, cell_axes(flat_memory([(3, 4)]))[0])
    assert found.shape == (2, 3, 5, 12)
    offset, scale = (head(query).view(2, 5, 3, 2) for head in (modulation.offset_head, modulation.scale_head))
    for b, h, q, y, x in torch.cartesian_prod(*map(torch.arange, (2, 3, 5, 3, 4))).tolist():
        distance = torch.tensor([x, y]) - centre[b, q] - offset[b, q, h]
        expected = -(scale[b, q, h] * distance).square().sum() / 8
        assert torch.allclose(found[b, h, q, 4 * y + x], expected, atol=1e-5)


def test_levels_count_in_cells_of_the_middle_one():
    """4x8, 2x4 and 1x2 cells, of which the first image fills all and the second the left upper 2x4, 1x2 and 1x1."""
    shapes = [(4, 8), (2, 4), (1, 2)]
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in shapes]
    for level, (height, width) in enumerate([(2, 4), (1, 2), (1, 1)]):
        masks[level][0] = False
        masks[level][1, :height, :width] = False
    axes, extent = cell_axes(flat_memory(shapes, torch.cat([m.flatten(1) for m in masks], dim=1), images=2))
    assert extent.tolist() == [[[4.0, 2.0]], [[2.0, 1.0]]]
    for size, (x, y) in zip((0.5, 1.0, 2.0), axes, strict=True):
        assert torch.allclose(x[0], torch.arange(x.shape[1]) * size)
        assert torch.allclose(y[0], torch.arange(y.shape[1]) * size)
    assert torch.allclose(axes[2][1][1], torch.tensor([0.0])) and torch.allclose(
        axes[2][0][1], torch.tensor([0.0, 2.0])
    )
    whole, _ = cell_axes(flat_memory(shapes))
    for first, second in zip(whole, axes, strict=True):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_a_gaussian_far_away_stays_finite():
    """In float16 minus a million would be minus infinity for every cell, and the softmax not a number."""
    modulation = make_modulation([1e4, 0.0], [1.0, 1.0], smoothness=8.0)
    memory = flat_memory([(2, 2)])
    (found,) = modulation(torch.randn(1, 1, 4), torch.zeros(1, 1, 2), cell_axes(memory)[0])
    assert (found == SMALLEST_LOG).all() and found.half().isfinite().all()


def test_published_start(inputs):
    model = build_model(small_cfg(**SMCA))
    for layer in model.decoder.layers:
        assert layer.modulation.scale_head.weight.abs().max() == 0 and (layer.modulation.scale_head.bias == 1).all()
        assert layer.modulation.offset_head.weight.abs().max() > 0 and layer.modulation.smoothness == 8
    assert model.decoder.heads.class_head.bias[0].item() == pytest.approx(-math.log(99))
    assert model.decoder.heads.box_head.layers[-1].weight.abs().max() > 0


@every_variant
def test_one_centre_serves_all_layers_and_the_boxes(variant, inputs):
    model = build(variant).eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    seen = []
    for layer in model.decoder.layers:
        layer.modulation.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    for value in model.decoder.heads.box_head.layers[-1].parameters():
        torch.nn.init.zeros_(value)
    boxes = model.decode(memory, [own])["own"].boxes
    _, extent = cell_axes(memory)
    assert torch.equal(seen[0], seen[1]) and seen[0].requires_grad
    assert torch.allclose(boxes[..., :2] * extent, seen[0].expand(2, -1, -1, -1), atol=1e-5)
    assert torch.allclose(boxes[..., 2:], torch.tensor(0.5)) and boxes[..., :2].std() > 0.001


@every_variant
def test_captured_maps_reproduce_the_output(variant, inputs):
    """Map times values is what the output projection gets; a level's share is the query's softmax."""
    model = build(variant).eval()
    memory = encode(model, inputs)
    layer = model.decoder.layers[1]
    seen: dict[str, Tensor] = {}
    attention = layer.cross_attention
    attention.output_projection.register_forward_pre_hook(lambda module, args: seen.update(output=args[0]))
    if layer.level_head is not None:
        layer.level_head.register_forward_hook(lambda module, args, out: seen.update(shares=out.softmax(-1)))
    output = model.decode(memory, [model.queries(memory)], frozenset({CROSS_ATTENTION}))["own"]
    values = split_heads(attention.value_projection(memory.tokens), attention.num_heads)
    found = output.cross_attention[1] @ values
    assert torch.allclose(found.transpose(1, 2).flatten(2), seen["output"], atol=1e-5)
    if layer.level_head is not None:
        parts = output.cross_attention[1].split([h * w for h, w in memory.shapes], dim=-1)
        shares = torch.stack([part.sum(-1) for part in parts], dim=-1)
        assert torch.allclose(shares, seen["shares"].unsqueeze(1).expand_as(shares), atol=1e-5)
        assert shares.std() > 0.001


@pytest.mark.parametrize("layers", [[], [1], [0, 1, 2]])
def test_intra_scale_layers_see_one_level(layers, inputs):
    model = build("multi_scale", MODEL__DETR__SMCA__MULTI_SCALE_LAYERS=layers).eval()
    images = model.preprocess(inputs)
    memory = model.input_projection(model.backbone(images.tensor), images)
    cells = memory.shapes[0][0] * memory.shapes[0][1]
    changed = memory.tokens.clone()
    changed[:, 0] += 1.0  # never padding
    before, after = model.encoder(memory), model.encoder(dataclasses.replace(memory, tokens=changed))
    moved = (before - after).abs().amax((0, 2)) > 1e-6
    visible = ~memory.mask.all(0)
    assert moved[:cells][visible[:cells]].all(), "the level itself is seen"
    assert moved[cells:][visible[cells:]].all() == bool(layers)
    if layers == [0, 1, 2]:
        plain = build_model(small_cfg(**{**MULTI_SCALE, "MODEL__DETR__ENCODER__NAME": "TransformerEncoder"})).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.allclose(plain.encoder(memory), before, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**SMCA, "MODEL__DETR__SMCA__SMOOTHNESS": 0.0}, "SMCA.SMOOTHNESS is 0.0. Give more than 0"),
        ({**SMCA, "MODEL__DETR__QUERIES__NAME": "AnchorBoxQueries"}, "positions are 4 wide; SmcaDecoder reads 16"),
        ({**MULTI_SCALE, "MODEL__DETR__SMCA__MULTI_SCALE_LAYERS": [3]}, "Name layers from 0 to 2"),
        ({**MULTI_SCALE, "MODEL__DETR__NECK__NAME": "AdaMixerNeck"},
         "NECK.NAME is AdaMixerNeck; SmcaDecoder samples 3 levels. Set it to MultiLevelNeck"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**keys))


def test_the_multi_level_neck_with_one_level_needs_no_level_weights():
    keys = {**MULTI_SCALE, "MODEL__DETR__IN_FEATURES": ["stage3"], "MODEL__DETR__NUM_LEVELS": 1}
    model = randomise(build_model(small_cfg(**keys))).train()
    sum(model(make_inputs()).values()).backward()
    assert all(layer.level_head is None for layer in model.decoder.layers)
    assert all(value.grad is not None for value in model.parameters())
