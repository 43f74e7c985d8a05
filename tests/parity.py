"""Weights of transformers' detectors under this project's names, and models of the same shape on both sides."""

from __future__ import annotations

import re

import transformers
from builders import randomise, small_cfg
from detectron2.modeling import build_model

RESNET = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.embedder\.embedder", "backbone.stem.conv1"),
    (
        r"^model\.backbone\.(conv_encoder\.)?model\.encoder\.stages\.(\d+)\.layers",
        lambda m: f"backbone.res{int(m[2]) + 2}",
    ),
    (r"\.layer\.(\d+)\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.normalization\.", ".norm."),
    (r"\.convolution\.", "."),
]
SHARED = [
    (r"^model\.(input_projection|encoder|decoder)", r"\1"),
    (r"^decoder\.layernorm", "decoder.norm"),
    (r"^encoder(.*)\.self_attn_layer_norm", r"encoder\1.attention_norm"),
    (r"^encoder(.*)\.self_attn\.", r"encoder\1.attention."),
    (r"\.mlp\.(fc\d|activation_fn)", r".\1"),
    (r"\.fc1", ".feed_forward.expand"),
    (r"\.fc2", ".feed_forward.contract"),
    (r"(\.mlp)?\.final_layer_norm", ".feed_forward_norm"),
    (r"^(class_labels_classifier|class_embed)", "decoder.heads.class_head"),
    (r"^(bbox_predictor|decoder\.bbox_embed)", "decoder.heads.box_head"),
]
DETR = [
    (r"^model\.query_position_embeddings", "queries.position"),
    (r"^decoder(.*)\.self_attn_layer_norm", r"decoder\1.self_attention_norm"),
    (r"\.encoder_attn_layer_norm", ".cross_attention_norm"),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
]
PACKED = [
    (r"\.q_proj", ".query_projection"),
    (r"\.k_proj", ".key_projection"),
    (r"\.v_proj", ".value_projection"),
    (r"\.o_proj", ".output_projection"),
]
CONDITIONAL = [
    (r"^decoder(.*)\.v_proj", r"decoder\1.value"),
    (r"^decoder(.*)\.o_proj", r"decoder\1.output"),
    (r"\.q_pos_sine_proj", ".query_sine"),
    (r"\.q_content_proj", ".query_content"),
    (r"\.k_content_proj", ".key_content"),
    (r"\.q_pos_proj", ".query_position"),
    (r"\.k_pos_proj", ".key_position"),
    (r"\.query_scale", ".scale_head"),
    (r"\.ref_point_head", ".reference_head"),
]
DAB = [
    (r"^model\.query_refpoint_embeddings", "queries.position"),
    (r"(self|cross)_attn\.\1_attn_layer_norm", r"\1_attention_norm"),
    (r"(self|cross)_attn\.\1_attn\.output_proj", r"\1_attention.output"),
    (r"(self|cross)_attn\.\1_attn_query_pos_sine_proj", r"\1_attention.query_sine"),
    (r"(self|cross)_attn\.\1_attn_(query|key)_content_proj", r"\1_attention.\2_content"),
    (r"(self|cross)_attn\.\1_attn_(query|key)_pos_proj", r"\1_attention.\2_position"),
    (r"(self|cross)_attn\.\1_attn_value_proj", r"\1_attention.value"),
    (r"\.out_proj", ".output_projection"),
    (r"\.activation_fn", ".feed_forward.activation"),
    (r"\.query_scale", ".scale_head"),
    (r"\.ref_point_head", ".position_head"),
    (r"\.ref_anchor_head", ".size_head"),
]
FAMILIES = {
    "DetrDecoder": (transformers.DetrConfig, transformers.DetrForObjectDetection, DETR + PACKED),
    "ConditionalDecoder": (
        transformers.ConditionalDetrConfig,
        transformers.ConditionalDetrForObjectDetection,
        DETR + CONDITIONAL + PACKED,
    ),
    "DabDecoder": (transformers.DabDetrConfig, transformers.DabDetrForObjectDetection, DAB + PACKED),
}


def our_weights(family: str, reference) -> dict:
    """The state dict of a transformers model under our names."""
    weights = {}
    for key, value in reference.state_dict().items():
        if "num_batches_tracked" in key:
            continue
        for pattern, replacement in RESNET + SHARED + FAMILIES[family][2]:
            key = re.sub(pattern, replacement, key)
        weights[key] = value
    return weights


def build_reference(family: str, num_classes: int = 5):
    """A small randomised model of transformers on an R18."""
    resnet = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config_class, model_class, _ = FAMILIES[family]
    width = "hidden_size" if family == "DabDecoder" else "d_model"
    config = config_class(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet,
        encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_queries=9, auxiliary_loss=False, attn_implementation="eager",
        num_labels=num_classes, **{width: 32},
    )  # fmt: skip
    return randomise(model_class(config)).eval()


def build_ours(**keys):
    """Our detector of the same shape."""
    cfg = small_cfg(**keys)
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.DETR.IN_FEATURES = ["res5"]
    cfg.MODEL.DETR.DECODER.POINT_TEMPERATURE = 10000.0
    cfg.MODEL.DETR.DECODER.POSITION_GAIN = 0.0
    cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NUM_HEADS, cfg.MODEL.DETR.FFN_DIM = 32, 4, 48
    cfg.MODEL.DETR.ENCODER.NUM_LAYERS, cfg.MODEL.DETR.DECODER.NUM_LAYERS, cfg.MODEL.DETR.NUM_QUERIES = 2, 3, 9
    return build_model(cfg).eval()
