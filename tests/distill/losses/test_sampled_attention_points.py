"""The points that deformable decoders keep are those that are read, in the image's own coordinates."""

from __future__ import annotations

from detr_distill.detr.decoders.deformable import DeformableDecoder
from detr_distill.detr.layers.deformable import multi_scale_deformable_attention
from detr_distill.registry import DECODER_REGISTRY
from detr_distill.structures import SAMPLED_ATTENTION, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.detr.deformable_detectors import PLAIN as LEARNED
from helpers.detr.deformable_detectors import TWO_STAGE
from helpers.steps import encode

POINTS = frozenset({SAMPLED_ATTENTION})


def deformable_decoders():
    return [name for name, cls in DECODER_REGISTRY if issubclass(cls, DeformableDecoder)]


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
