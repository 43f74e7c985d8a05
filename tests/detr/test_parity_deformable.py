"""Deformable DETR and its variants equal the independent implementation in transformers, weights copied across.

Points and boxes are spread over the image and to its border; images have odd sizes and padding.
"""

from __future__ import annotations

from detr_distill.checkpoint.importing.names_transformers import rename_transformers

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg

pytest.importorskip("transformers")

from helpers.parity import DEFORMABLE_VARIANTS, build_deformable_reference
from helpers.parity_points import assert_same_losses, near_the_border, published_logit, spread_points, use_epsilon

LAYERS, WIDTH = 3, 32


def build_ours(variant: str, epsilon: float):
    cfg = small_cfg(MODEL__DETR__MATCHER__COST_CLASS=1.0, MODEL__DETR__LOGIT_EPSILON=epsilon)
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


def layer_outputs(reference, expected, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes of every layer, from the hidden states and reference points that transformers returns."""
    hidden = expected.intermediate_hidden_states
    points = [expected.init_reference_points, *expected.intermediate_reference_points.unbind(1)][:-1]
    logits, boxes = [], []
    for layer, point in enumerate(points):
        logits.append(reference.class_embed[layer](hidden[:, layer]))
        offsets = reference.bbox_embed[layer](hidden[:, layer])
        offsets[..., : point.shape[-1]] += published_logit(point, epsilon)
        boxes.append(offsets.sigmoid())
    return torch.stack(logits), torch.stack(boxes)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01, "a constant output would prove nothing"
    assert found.shape == expected.shape
    # Weights that are scaled before the convolution round otherwise; a random network enlarges what they differ by.
    assert (found - expected).abs().max() < 2e-4


@torch.no_grad()
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
@pytest.mark.parametrize("variant", DEFORMABLE_VARIANTS)
def test_every_layer_and_loss_equals_transformers(variant, epsilon, monkeypatch):
    """With the limit of logits that transformers and the authors have, and with that of detrex."""
    reference, ours = build_deformable_reference(variant), build_ours(variant, epsilon)
    spread_points(reference)
    use_epsilon(monkeypatch, reference, epsilon)
    refined = variant in ("refinement", "two_stage")
    ours.load_state_dict(rename_transformers(reference.state_dict(), "deformable_detr", refined), strict=True)

    inputs = make_inputs(sizes=((91, 133), (121, 65)), counts=(2, 3))
    started = ours.start(inputs)
    finished, images = ours.finish(started), started.images
    output, (own, *_) = finished.outputs["own"], finished.groups
    assert images.mask.any(), "the batch must be padded"
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long())
    assert near_the_border(expected.init_reference_points, epsilon), "where the limit counts"
    assert_close(finished.memory.tokens, expected.encoder_last_hidden_state)
    logits, boxes = layer_outputs(reference, expected, epsilon)
    assert torch.equal(logits[-1], expected.logits) and torch.allclose(boxes[-1], expected.pred_boxes, atol=1e-6)
    assert_close(output.logits, logits)
    assert_close(output.boxes, boxes)
    if variant == "two_stage":
        assert_close(own.proposals.logits[0], expected.enc_outputs_class)
        assert_close(own.proposals.boxes[0], expected.enc_outputs_coord_logits.sigmoid())
    assert_same_losses(ours, inputs, finished, reference, logits, boxes)
