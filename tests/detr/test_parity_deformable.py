"""Deformable DETR and its variants equal the independent implementation in transformers, weights copied across."""

from __future__ import annotations

from detr_distill.checkpoint.importing.names_transformers import rename_transformers

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg

pytest.importorskip("transformers")

from helpers.parity import DEFORMABLE_VARIANTS, build_deformable_reference
from helpers.steps import encode_features

LAYERS, WIDTH = 3, 32


def build_ours(variant: str):
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 18, 64, False
    node = cfg.MODEL.DETR
    node.IN_FEATURES = ["res5"] if variant == "single_scale" else ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = node.IN_FEATURES
    node.NUM_LEVELS = 1 if variant == "single_scale" else 4
    node.NECK.NAME, node.ENCODER.NAME = "MultiLevelNeck", "DeformableEncoder"
    two_stage = variant == "two_stage"
    node.DECODER.NAME = "DeformableBoxDecoder" if two_stage else "DeformableDecoder"
    node.QUERIES.NAME = "TwoStageQueries" if two_stage else "LearnedContentQueries"
    node.DECODER.BOX_REFINEMENT = two_stage or variant == "refinement"
    node.POSITION_TEMPERATURE = node.DECODER.POINT_TEMPERATURE = 10000.0
    node.HIDDEN_DIM, node.NUM_HEADS, node.FFN_DIM = WIDTH, 4, 48
    node.ENCODER.NUM_LAYERS, node.DECODER.NUM_LAYERS, node.NUM_QUERIES = 2, LAYERS, 9
    return build_model(cfg).eval()


def layer_outputs(reference, expected) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes of every layer, from the hidden states and reference points that transformers returns."""
    hidden = expected.intermediate_hidden_states
    points = [expected.init_reference_points, *expected.intermediate_reference_points.unbind(1)][:-1]
    logits, boxes = [], []
    for layer, point in enumerate(points):
        logits.append(reference.class_embed[layer](hidden[:, layer]))
        offsets = reference.bbox_embed[layer](hidden[:, layer])
        offsets[..., : point.shape[-1]] += torch.logit(point, eps=1e-5)
        boxes.append(offsets.sigmoid())
    return torch.stack(logits), torch.stack(boxes)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01, "a constant output would prove nothing"
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("variant", DEFORMABLE_VARIANTS)
def test_every_layer_equals_transformers(variant):
    reference, ours = build_deformable_reference(variant), build_ours(variant)
    refined = variant in ("refinement", "two_stage")
    ours.load_state_dict(rename_transformers(reference.state_dict(), "deformable_detr", refined), strict=True)

    images = ours.preprocess(make_inputs(sizes=((90, 130), (120, 64)), counts=(1, 1)))
    assert images.mask.any(), "the batch must be padded"
    memory = encode_features(ours, ours.backbone(images.tensor), images)
    own = ours.queries(memory)
    output = ours.decode(memory, [own])["own"]
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long())
    assert_close(memory.tokens, expected.encoder_last_hidden_state)
    logits, boxes = layer_outputs(reference, expected)
    assert torch.equal(logits[-1], expected.logits) and torch.allclose(boxes[-1], expected.pred_boxes, atol=1e-6)
    assert_close(output.logits, logits)
    assert_close(output.boxes, boxes)
    if variant == "two_stage":
        assert_close(own.proposals.logits[0], expected.enc_outputs_class)
        assert_close(own.proposals.boxes[0], expected.enc_outputs_coord_logits.sigmoid())
