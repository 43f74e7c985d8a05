"""The decoders of DINO and DN-Deformable DETR: anchors, looking forward twice, heads, capture, and any batch."""

from __future__ import annotations

from detr_distill.detr.boxes import inverse_sigmoid
from detr_distill.structures import SAMPLED_ATTENTION, SELF_ATTENTION, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.denoising_detectors import DINO, DN_DEFORMABLE, begin_step, build, decode

BOTH = {"dino": DINO, "dn_deformable": DN_DEFORMABLE}
both_decoders = pytest.mark.parametrize("variant", BOTH)
LAYERS = 3


def test_anchors_of_dab_deformable_detr(inputs):
    """Each layer's anchor is the box before it without gradient; the content scales positions from the second on."""
    model = build("dn_deformable", MODEL__DETR__DECODER__NUM_LAYERS=LAYERS).eval()
    seen: list[tuple] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[:3]))
    memory, own, output = decode(model, inputs)
    anchors = [own.position.sigmoid(), *output.boxes[:-1]]
    contents = [own.content, *output.hidden[:-1]]
    frequency = 2 * torch.pi / model.decoder.temperature ** (torch.arange(8) * 2 / 16)
    for index, (content, position, places) in enumerate(seen):
        assert torch.equal(content, contents[index]), "without a norm the heads read what the next layer reads"
        assert torch.allclose(places, anchors[index][:, :, None] * memory.valid_ratios.repeat(1, 1, 2)[:, None])
        assert places.requires_grad == (index == 0)
        waves = [places[:, :, 0, k, None] * frequency for k in (1, 0, 2, 3)]  # y, x, width, height
        sine = torch.cat([torch.stack([w.sin(), w.cos()], -1).flatten(-2) for w in waves], dim=-1)
        expected = model.decoder.position_head(sine)
        if index:
            expected = expected * model.decoder.scale_head(content)
        assert torch.allclose(position, expected, atol=1e-5)


@both_decoders
def test_boxes_are_counted_from_a_thousandth(variant):
    """An anchor of no size has the logit of 0.001, as in the authors' code."""
    model = build_model(small_cfg(**BOTH[variant])).eval()  # box heads start at zero, but for the size bias
    memory, own, _ = decode(model, make_inputs())
    position = torch.full_like(own.position, -20.0)
    group = QueryGroup("own", own.content, position)
    first = model.decode(memory, [group])["own"].boxes[0]
    bias = torch.tensor([0.0, 0.0, model.decoder.size_bias, model.decoder.size_bias])
    expected = (inverse_sigmoid(torch.tensor(0.001)) + bias).sigmoid()
    assert torch.allclose(first, expected.expand_as(first), atol=1e-6)
    assert model.decoder.size_bias == (0.0 if variant == "dino" else -2.0)


@pytest.mark.parametrize("twice", [True, False])
def test_a_box_head_learns_from_its_own_layer_and_from_the_next(twice):
    keys = {"SHARED_HEADS": False, "LOOK_FORWARD_TWICE": twice, "NUM_LAYERS": LAYERS}
    model = build("dino", **{f"MODEL__DETR__DECODER__{key}": value for key, value in keys.items()})
    _, own, output = decode(model, make_inputs())
    heads = [heads.box_head.layers[-1].weight for heads in model.decoder.heads]
    for layer in range(LAYERS):
        found = torch.autograd.grad(output.boxes[layer].sum(), heads, allow_unused=True, retain_graph=True)
        reached = {index for index, gradient in enumerate(found) if gradient is not None and gradient.abs().max() > 0}
        assert reached == ({layer, layer - 1} - {-1} if twice else {layer})
    assert not own.position.requires_grad, "the encoder's boxes learn from its own loss"


def test_look_forward_twice_changes_no_output(inputs):
    outputs = []
    for twice in (True, False):
        model = build("dino", MODEL__DETR__DECODER__LOOK_FORWARD_TWICE=twice).eval()
        outputs.append(decode(model, inputs)[2].boxes)
    assert torch.equal(*outputs)


def test_heads_are_shared_or_not():
    def heads(variant: str, **keys) -> int:
        return len(build_model(small_cfg(**{**BOTH[variant], **keys})).decoder.heads)

    assert (heads("dino"), heads("dino", MODEL__DETR__DECODER__SHARED_HEADS=False)) == (1, 2)
    assert heads("dn_deformable") == 2


@both_decoders
def test_captured_attention_changes_nothing(variant, inputs):
    model = build(variant).eval()
    capture = frozenset({SELF_ATTENTION, SAMPLED_ATTENTION})
    assert model.decoder.captures >= capture
    memory, _, groups = begin_step(model, inputs)
    plain, captured = (model.decode(memory, groups, c) for c in (frozenset(), capture))
    for group in groups:
        output = captured[group.name]
        assert torch.allclose(plain[group.name].logits, output.logits, atol=1e-5)
        queries = group.content.shape[1]
        assert output.self_attention[0].shape == (2, 2, queries, queries)
        assert output.sampled_attention[1].weights.shape == (2, queries, 2, 3, 4)
    maps = captured["denoising"].self_attention[0]
    hidden = groups[1].padding[:, None, None, :] & ~torch.eye(maps.shape[-1], dtype=torch.bool)
    assert maps[(groups[1].inner_mask | hidden).expand_as(maps)].max() == 0


@both_decoders
def test_boxes_stay_in_float32_under_autocast(variant, inputs):
    model = build(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = decode(model, inputs)[2]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


@both_decoders
def test_detections_do_not_depend_on_the_batch(variant):
    model = build(variant).eval()
    inputs = make_inputs(sizes=((48, 64), (48, 64)), counts=(1, 1), labels=False)
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            assert torch.allclose(model([entry])[0]["instances"].scores, expected["instances"].scores, atol=1e-5)
