"""Anchor DETR: row-column attention against a loop, embeddings, anchor points, patterns and the start of the boxes.

What it promises like every decoder with dense maps is in decoders/test_dense.py.
"""

from __future__ import annotations

import math

from detr_distill.detr.layers.attention import split_heads
from detr_distill.detr.layers.feed_forward import Dropout
from detr_distill.detr.layers.row_column import AxisEmbedding, PlaneEmbedding, RowColumnAttention
from detr_distill.detr.queries.anchor_points import grid_points
from detr_distill.errors import ConfigError
from detr_distill.structures import CROSS_ATTENTION, Memory, QueryGroup
from detr_distill.structures.levels import axis_positions

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.detr.dense_detectors import ANCHOR, STANDARD
from helpers.steps import encode
from torch import Tensor, nn


def build(**keys):
    return randomise(build_model(small_cfg(**{**ANCHOR, **keys})))


def padded_memory(shape=(3, 5), width=8) -> Memory:
    """Two images, of which the second fills 2 rows and 3 columns."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, shape[0] * shape[1], width, generator=generator)
    mask = torch.zeros(2, *shape, dtype=torch.bool)
    mask[1, 2:] = True
    mask[1, :, 3:] = True
    return Memory(tokens, torch.zeros_like(tokens), mask.flatten(1), [shape])


@pytest.mark.parametrize("shape", [(3, 5), (5, 4)])
def test_row_column_attention_equals_a_loop(shape):
    """Every image, head and query by itself; means, maps and sums over visible cells alone."""
    memory, width, heads = padded_memory(shape), 8, 2
    attention = randomise(RowColumnAttention(width, heads, dropout=0.0))
    query, *places = (torch.randn(2, 4, width) for _ in range(3))
    cells = torch.randn(2, shape[1], width), torch.randn(2, shape[0], width)
    found, maps = attention.over_cells(query, tuple(places), memory, cells, capture=True)
    fused, nothing = attention.over_cells(query, tuple(places), memory, cells)
    assert torch.equal(found, fused) and nothing is None
    for b, q in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        rows, columns = (shape, (2, 3))[b]
        grid = memory.tokens[b].view(*shape, width)[:rows, :columns]
        mixed, expected_map = [], torch.zeros(heads, *shape)
        for head in range(heads):
            own = slice(4 * head, 4 * head + 4)
            weights = []
            for axis, count in ((0, columns), (1, rows)):
                to_query, to_key = ((attention.query_x, attention.key_x), (attention.query_y, attention.key_y))[axis]
                asked = to_query(query[b, q] + places[axis][b, q])[own]
                scores = [asked @ to_key(grid.mean(axis)[n] + cells[axis][b, n])[own] / 2 for n in range(count)]
                weights.append(torch.stack(scores).softmax(0))
            values = attention.value_projection(grid)[..., own]
            mixed.append(sum(weights[1][y] * weights[0][x] * values[y, x] for y in range(rows) for x in range(columns)))
            expected_map[head, :rows, :columns] = weights[1][:, None] * weights[0]
        assert torch.allclose(found[b, q], attention.output_projection(torch.cat(mixed)), atol=1e-5)
        assert torch.allclose(maps[b, :, q], expected_map.flatten(1), atol=1e-6)


def test_row_column_attention_has_the_gradient_of_its_maps():
    """The two sums give the gradients that the outer product would give."""
    memory = padded_memory()
    attention = randomise(RowColumnAttention(8, 2, dropout=0.0))
    inputs = [torch.randn(2, 4, 8, requires_grad=True) for _ in range(3)]
    cells = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    found, maps = attention.over_cells(inputs[0], tuple(inputs[1:]), memory, cells, capture=True)
    values = split_heads(attention.value_projection(memory.tokens), 2)
    outer = attention.output_projection((maps @ values).transpose(1, 2).flatten(2))
    gradients = [torch.autograd.grad(x.square().sum(), inputs, retain_graph=True) for x in (found, outer)]
    for first, second in zip(*gradients, strict=True):
        assert first.abs().max() > 0 and torch.allclose(first, second, atol=1e-5)


def test_dropout_falls_on_both_axes_and_spares_the_map():
    memory = padded_memory()
    attention = randomise(RowColumnAttention(8, 2, dropout=0.5)).train()
    arguments = torch.randn(2, 4, 8), (torch.zeros(2, 4, 8),) * 2, memory, (torch.zeros(1, 1, 8),) * 2
    torch.manual_seed(0)
    first, maps = attention.over_cells(*arguments, capture=True)
    second, again = attention.over_cells(*arguments, capture=True)
    assert not torch.allclose(first, second, atol=1e-3) and torch.equal(maps, again)
    assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-6)


def test_axis_positions_are_centres_of_the_image_without_padding():
    ((x, y),) = axis_positions(padded_memory())
    assert torch.allclose(x[0], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    assert torch.allclose(y[0], torch.tensor([1 / 6, 3 / 6, 5 / 6]))
    assert torch.allclose(x[1, :3], torch.tensor([1 / 6, 3 / 6, 5 / 6])) and torch.allclose(
        y[1, :2], torch.tensor([0.25, 0.75])
    )


def test_axis_embedding_by_hand():
    """A quarter of the axis is a right angle; the second pair of a width of 4 has the wave length times 100."""
    embedding = AxisEmbedding(4, 10000.0)
    embedding.perceptron = nn.Identity()
    x, y = embedding.points(torch.tensor([[[0.25, 0.5]]]))
    for found, angle in ((x, math.pi / 2), (y, math.pi)):
        slow = angle / 100
        assert found.flatten().tolist() == pytest.approx(
            [math.sin(angle), math.cos(angle), math.sin(slow), math.cos(slow)], abs=1e-5
        )


@pytest.mark.parametrize("kind", [AxisEmbedding, PlaneEmbedding])
def test_cells_are_embedded_as_points_at_their_centres(kind):
    memory = padded_memory()
    embedding = kind(8, 20.0)
    found = embedding.every_cell(embedding.cells(memory))
    for row, column in ((0, 0), (1, 2)):
        for image, (rows, columns) in enumerate(((3, 5), (2, 3))):
            point = torch.tensor([[[(column + 0.5) / columns, (row + 0.5) / rows]]])
            for part, expected in zip(found, embedding.points(point), strict=True):
                assert torch.allclose(part[image, 5 * row + column], expected[0, 0], atol=1e-5)


def test_every_pattern_stands_at_every_point(inputs):
    model = build()
    memory = encode(model.eval(), inputs)
    own = model.queries(memory)
    assert own.content.shape == (2, 6, 32) and own.position.shape == (2, 6, 2)
    for query in range(6):
        assert torch.equal(own.content[0, query], model.queries.pattern.weight[query // 2])
        assert torch.equal(own.position[1, query], model.queries.points[query % 2])


def test_learned_points_start_evenly_in_the_image():
    points = build_model(small_cfg(**ANCHOR, MODEL__DETR__ANCHOR__NUM_PATTERNS=1)).queries.points
    assert isinstance(points, nn.Parameter) and points.shape == (6, 2)
    many = build_model(small_cfg(**{**ANCHOR, "MODEL__DETR__NUM_QUERIES": 3000})).queries.points.sigmoid()
    assert many.min() < 0.01 and many.max() > 0.99
    assert many.mean().item() == pytest.approx(0.5, abs=0.03) and many.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_grid_points_stay_where_they_are():
    assert grid_points(4).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    model = build_model(small_cfg(**{**ANCHOR, "MODEL__DETR__NUM_QUERIES": 12, "MODEL__DETR__ANCHOR__POINTS": "grid"}))
    assert not [name for name in model.state_dict() if "points" in name]
    assert torch.allclose(model.queries.points.sigmoid(), grid_points(4))
    losses = model.train()(make_inputs())
    sum(losses.values()).backward()
    assert all(value.grad is not None for value in model.parameters())


def test_first_boxes_lie_at_the_anchor_points(inputs):
    """Before training every layer gives the point itself, 0.12 wide and high; classes are rare."""
    model = build_model(small_cfg(**ANCHOR)).eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    boxes = model.decode(memory, [own])["own"].boxes
    assert torch.allclose(boxes[..., :2], own.position.sigmoid().expand(2, -1, -1, -1), atol=1e-6)
    assert torch.allclose(boxes[..., 2:], torch.tensor(-2.0).sigmoid())
    assert model.decoder.heads.class_head.bias[0].item() == pytest.approx(-math.log(99))


def test_position_gain_starts_attention_at_the_anchor_points():
    """Without content every head looks at the point's own cell; the published start looks almost evenly."""
    memory = Memory(torch.zeros(1, 8 * 8, 32), torch.zeros(1, 64, 32), None, [(8, 8)])
    point = torch.tensor([[[2.5, 5.5], [6.5, 0.5]]]) / 8
    group = QueryGroup("own", torch.zeros(1, 2, 32), point.logit())
    for gain in (40.0, 0.0):
        keys = {"MODEL__DETR__DECODER__POSITION_GAIN": gain, "MODEL__DETR__POSITION_TEMPERATURE": 20.0}
        model = build_model(small_cfg(**{**ANCHOR, **keys})).eval()
        maps = model.decode(memory, [group], frozenset({CROSS_ATTENTION}))["own"].cross_attention[0]
        if gain:
            assert maps.argmax(-1).tolist() == [[[5 * 8 + 2, 0 * 8 + 6]] * 2] and maps.amax(-1).min() > 0.5
        else:
            assert maps.max() < 0.1


@pytest.mark.parametrize("attention", ["row_column", "standard"])
def test_captured_maps_reproduce_the_output(attention, inputs):
    model = build(MODEL__DETR__ANCHOR__ATTENTION=attention).eval()
    memory = encode(model, inputs)
    cross = model.decoder.layers[1].cross_attention
    seen: list[Tensor] = []
    cross.output_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output = model.decode(memory, [model.queries(memory)], frozenset({CROSS_ATTENTION}))["own"]
    values = split_heads(cross.value_projection(memory.tokens), cross.num_heads)
    found = (output.cross_attention[1] @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(found, seen[0], atol=1e-5)


def test_neck_is_a_normalised_projection(inputs):
    model = build()
    images = model.preprocess(inputs)
    features = model.backbone.eval()(images.tensor)
    neck = model.input_projection
    expected = neck.norm(nn.functional.conv2d(features["stage3"], neck.weight, neck.bias))
    assert torch.allclose(neck(features, images).tokens, expected.flatten(2).transpose(1, 2), atol=1e-4)


def test_an_encoder_without_layers_has_no_parameters():
    model = build(MODEL__DETR__ENCODER__NUM_LAYERS=0).train()
    assert not list(model.encoder.parameters())
    sum(model(make_inputs()).values()).backward()
    assert all(value.grad is not None for value in model.parameters())


def test_all_dropout_is_the_projects():
    """torch's own draws a number an entry, which takes longer than the layer on a CPU."""
    model = build(MODEL__DETR__DROPOUT=0.1)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {Dropout} and len(model.encoder.layers) == 1


def test_an_exported_model_shares_no_tensors():
    """A format without aliases, such as safetensors, refuses them."""
    for keys in (ANCHOR, STANDARD):
        state = build_model(small_cfg(**keys)).state_dict()
        assert len({value.data_ptr() for value in state.values()}) == len(state)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__DETR__ANCHOR__ATTENTION": "sparse"}, "ANCHOR.ATTENTION is 'sparse'. Known: 'row_column', 'standard'"),
        ({"MODEL__DETR__ANCHOR__ATTENTION": "standard", "MODEL__DETR__DECODER__POSITION_GAIN": 2.0},
         "POSITION_GAIN is 2.0, which AnchorDecoder has for row-column attention alone"),
        ({"MODEL__DETR__ANCHOR__POINTS": "random"}, "ANCHOR.POINTS is 'random'. Known: 'grid', 'learned'"),
        ({"MODEL__DETR__ANCHOR__NUM_PATTERNS": 4}, "NUM_QUERIES is 6 and MODEL.DETR.ANCHOR.NUM_PATTERNS 4"),
        ({"MODEL__DETR__ANCHOR__NUM_PATTERNS": 0}, "ANCHOR.NUM_PATTERNS is 0. Give 1 or more"),
        ({"MODEL__DETR__ANCHOR__POINTS": "grid"}, "gives 2 points, which is no square. Choose 1 or 4 times"),
        ({"MODEL__DETR__QUERIES__NAME": "LearnedQueries"}, "positions are 32 wide; AnchorDecoder reads 2"),
        ({"MODEL__DETR__NECK__NAME": "MultiLevelNeck"},
         "NECK.NAME is MultiLevelNeck, which gives several levels; Anchor.* reads one. Set it to AnchorNeck"),
        ({"MODEL__DETR__HIDDEN_DIM": 16}, "HIDDEN_DIM is 16; AnchorNeck normalises 32 groups"),
        ({"MODEL__DETR__NUM_HEADS": 3}, "HIDDEN_DIM is 32, which MODEL.DETR.NUM_HEADS = 3 does not divide"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**{**ANCHOR, **keys}))
