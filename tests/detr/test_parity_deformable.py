"""Deformable DETR and its variants equal the independent implementation in transformers, weights copied across."""

from __future__ import annotations

import re

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model

pytest.importorskip("transformers")

import transformers
from parity import DETR, PACKED, RESNET, SHARED

DEFORMABLE = [
    (r"^model\.level_embed$", "input_projection.level_embedding"),
    (r"^model\.input_proj\.", "input_projection.projections."),
    (r"^model\.reference_points", "decoder.reference_points"),
    (r"^model\.enc_output_norm", "queries.output_norm"),
    (r"^model\.enc_output", "queries.output"),
    (r"^model\.pos_trans_norm", "decoder.start_norm"),
    (r"^model\.pos_trans", "decoder.start_projection"),
    (r"^class_embed\.(\d+)", r"decoder.heads.\1.class_head"),
    (r"^bbox_embed\.(\d+)", r"decoder.heads.\1.box_head"),
    (r"(self_attn|encoder_attn)\.value_proj", r"\1.value_projection"),
    (r"(self_attn|encoder_attn)\.output_proj", r"\1.output_projection"),
]
VARIANTS = {
    "four_levels": {},
    "single_scale": {"num_feature_levels": 1},
    "refinement": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 9},
}
LAYERS, WIDTH = 3, 32


def our_weights(reference, two_stage: bool) -> dict:
    weights = {}
    for key, value in reference.state_dict().items():
        # Heads appear again inside the decoder, tied.
        if "num_batches_tracked" in key or re.match(r"model\.decoder\.(class|bbox)_embed", key):
            continue
        if key == "model.query_position_embeddings.weight":
            weights["queries.position.weight"], weights["queries.content.weight"] = value.split(WIDTH, dim=1)
            continue
        for pattern, replacement in RESNET + DEFORMABLE + SHARED + DETR + PACKED:
            key = re.sub(pattern, replacement, key)
        weights[key] = value
    if two_stage:  # the heads after the last layer's are the encoder's
        return {key.replace(f"decoder.heads.{LAYERS}.", "queries.heads."): value for key, value in weights.items()}
    return weights


def build_reference(variant: str):
    levels = 1 if variant == "single_scale" else 3
    resnet = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"][-levels:],
    )  # fmt: skip
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet, d_model=WIDTH,
        encoder_layers=2, decoder_layers=LAYERS, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=9, auxiliary_loss=False, attn_implementation="eager",
        num_labels=5, disable_custom_kernels=True, **VARIANTS[variant],
    )  # fmt: skip
    model = randomise(transformers.DeformableDetrForObjectDetection(config)).eval()
    refined = VARIANTS[variant].get("with_box_refine", False)
    assert (model.bbox_embed[1].layers[0].weight is model.bbox_embed[0].layers[0].weight) != refined
    return model


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_equals_transformers(variant):
    reference, ours = build_reference(variant), build_ours(variant)
    weights = our_weights(reference, variant == "two_stage")
    if variant in ("four_levels", "single_scale"):  # one head for all layers
        weights = {key: value for key, value in weights.items() if not re.search(r"heads\.[1-9]", key)}
    ours.load_state_dict(weights, strict=True)

    images = ours.preprocess(make_inputs(sizes=((90, 130), (120, 64)), counts=(1, 1)))
    assert images.mask.any(), "the batch must be padded"
    memory = ours.encode(ours.backbone(images.tensor), images)
    output = ours.decode(memory, [ours.queries(memory)])["own"]
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long())
    assert_close(memory.tokens, expected.encoder_last_hidden_state)
    logits, boxes = layer_outputs(reference, expected)
    assert torch.equal(logits[-1], expected.logits) and torch.allclose(boxes[-1], expected.pred_boxes, atol=1e-6)
    assert_close(output.logits, logits)
    assert_close(output.boxes, boxes)
    if variant == "two_stage":
        assert_close(memory.proposals.logits[0], expected.enc_outputs_class)
        assert_close(memory.proposals.boxes[0], expected.enc_outputs_coord_logits.sigmoid())
