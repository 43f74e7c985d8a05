"""AdaMixer keeps every promise of a decoder: its start, stages, groups, capture, padding, and any batch."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.detr.layers import adamixer
from detr_distill.errors import ConfigError
from detr_distill.structures import CAPTURES, SELF_ATTENTION, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.adamixer_detectors import ADAMIXER, build, random_group
from helpers.steps import check_images_alone, encode
from torch import Tensor

# Of the second stage, where random weights enlarge the first one's: seen 2e-5.
ROUNDING = 1e-4


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


@pytest.mark.parametrize("sizes", [((40, 56), (64, 72), (24, 48)), ((48, 64), (48, 64), (48, 64))])
def test_detections_do_not_depend_on_the_batch(sizes):
    model = build().eval()
    inputs = make_inputs(sizes=sizes, counts=(1, 1, 1), labels=False)
    check_images_alone(model, inputs)


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
