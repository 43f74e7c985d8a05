"""DETR and Conditional DETR equal the independent implementation in transformers, weights copied across."""

from __future__ import annotations

import re

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model

transformers = pytest.importorskip("transformers")

RENAMES = [
    (r"^model\.backbone\.model\.embedder\.embedder", "backbone.stem.conv1"),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d+)\.layers", lambda m: f"backbone.res{int(m[1]) + 2}"),
    (r"\.layer\.(\d+)\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.normalization\.", ".norm."),
    (r"\.convolution\.", "."),
    (r"^model\.query_position_embeddings", "queries.position"),
    (r"^model\.(input_projection|encoder|decoder)", r"\1"),
    (r"^decoder\.layernorm", "decoder.norm"),
    (r"^encoder(.*)\.self_attn_layer_norm", r"encoder\1.attention_norm"),
    (r"^encoder(.*)\.self_attn\.", r"encoder\1.attention."),
    (r"\.self_attn_layer_norm", ".self_attention_norm"),
    (r"\.encoder_attn_layer_norm", ".cross_attention_norm"),
    (r"\.final_layer_norm", ".feed_forward_norm"),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.mlp\.fc1", ".feed_forward.expand"),
    (r"\.mlp\.fc2", ".feed_forward.contract"),
    (r"\.q_pos_sine_proj", ".query_sine"),
    (r"\.(query_scale|ref_point_head)\.", lambda m: {"q": ".scale_head.", "r": ".reference_head."}[m[1][0]]),
    (r"^class_labels_classifier", "decoder.heads.class_head"),
    (r"^bbox_predictor", "decoder.heads.box_head"),
]
LONG = {"q": "query", "k": "key", "v": "value", "o": "output"}


def rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    conditional = "_content_proj" in key or "_pos_proj" in key
    key = re.sub(r"\.([qk])_content_proj", lambda m: f".{LONG[m[1]]}_content", key)
    key = re.sub(r"\.([qk])_pos_proj", lambda m: f".{LONG[m[1]]}_position", key)
    return key if conditional else re.sub(r"\.([qkvo])_proj", lambda m: f".{LONG[m[1]]}_projection", key)


def build_reference(family: str, activation_classes: int):
    resnet = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config_class, model_class = {
        "DetrDecoder": (transformers.DetrConfig, transformers.DetrForObjectDetection),
        "ConditionalDecoder": (transformers.ConditionalDetrConfig, transformers.ConditionalDetrForObjectDetection),
    }[family]
    config = config_class(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet, d_model=32,
        encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_queries=9, auxiliary_loss=False, attn_implementation="eager",
        num_labels=activation_classes,
    )  # fmt: skip
    return randomise(model_class(config)).eval()


def build_ours(family: str, classification: str):
    cfg = small_cfg(MODEL__DETR__DECODER__NAME=family, MODEL__DETR__LOSS__CLASSIFICATION=classification)
    cfg.MODEL.DETR.POSITION_TEMPERATURE = 10000.0
    cfg.MODEL.DETR.DECODER.POSITION_GAIN = 0.0
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.DETR.IN_FEATURES = ["res5"]
    cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NUM_HEADS, cfg.MODEL.DETR.FFN_DIM = 32, 4, 48
    cfg.MODEL.DETR.ENCODER.NUM_LAYERS, cfg.MODEL.DETR.DECODER.NUM_LAYERS, cfg.MODEL.DETR.NUM_QUERIES = 2, 3, 9
    return build_model(cfg).eval()


@pytest.mark.parametrize(("family", "classification"), [("DetrDecoder", "softmax"), ("ConditionalDecoder", "focal")])
def test_every_layer_equals_transformers(family, classification):
    reference = build_reference(family, 5)
    ours = build_ours(family, classification)
    weights = {}
    for key, value in reference.state_dict().items():
        name = rename(key)
        if "conditional" in type(reference).__name__.lower():
            name = re.sub(r"^(decoder.*attention)\.(value|output)_projection", r"\1.\2", name)
        weights[name] = value
    weights = {k: v for k, v in weights.items() if "num_batches_tracked" not in k}
    ours.load_state_dict(weights, strict=True)

    images = ours.preprocess(make_inputs(sizes=((90, 130), (120, 64)), counts=(1, 1)))
    with torch.no_grad():
        memory = ours.encode(ours.backbone(images.tensor), images)
        output = ours.decode(memory, [ours.queries(memory)])["own"]
        expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long(), output_hidden_states=True)
        hidden = torch.stack(expected.decoder_hidden_states[1:])
    assert images.mask.any(), "the batch must be padded"
    assert torch.allclose(output.logits[-1], expected.logits, atol=1e-4)
    assert torch.allclose(output.boxes[-1], expected.pred_boxes, atol=1e-4)
    # Inner layers: transformers gives them before the final norm; its own head then gives what a layer predicts.
    normed = reference.model.decoder.layernorm(hidden[:-1])
    assert torch.allclose(output.logits[:-1], reference.class_labels_classifier(normed), atol=1e-4)
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 0.01, "a constant output would prove nothing"
