"""Models of transformers and of this project of the same shape; weights from one to the other, and to the authors'."""

from __future__ import annotations

import re

from detr_distill.checkpoint.importing.names_transformers import rename_transformers

import torch
import transformers
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg

# Decoder: configuration and model of transformers, and the importer's name of the family.
FAMILIES = {
    "DetrDecoder": (transformers.DetrConfig, transformers.DetrForObjectDetection, "detr"),
    "ConditionalDecoder": (
        transformers.ConditionalDetrConfig,
        transformers.ConditionalDetrForObjectDetection,
        "conditional_detr",
    ),
    "DabDecoder": (transformers.DabDetrConfig, transformers.DabDetrForObjectDetection, "dab_detr"),
}
DEFORMABLE_VARIANTS = {
    "four_levels": {},
    "single_scale": {"num_feature_levels": 1},
    "refinement": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 9},
}


def our_weights(family: str, reference) -> dict:
    """The state dict of a transformers model under our names."""
    return rename_transformers(reference.state_dict(), FAMILIES[family][2])


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


def build_deformable_reference(variant: str):
    """A small randomised Deformable DETR of transformers on an R18."""
    levels = 1 if variant == "single_scale" else 3
    resnet = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"][-levels:],
    )  # fmt: skip
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet, d_model=32,
        encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=9, auxiliary_loss=False, attn_implementation="eager",
        num_labels=5, disable_custom_kernels=True, **DEFORMABLE_VARIANTS[variant],
    )  # fmt: skip
    model = randomise(transformers.DeformableDetrForObjectDetection(config)).eval()
    refined = DEFORMABLE_VARIANTS[variant].get("with_box_refine", False)
    assert (model.bbox_embed[1].layers[0].weight is model.bbox_embed[0].layers[0].weight) != refined
    return model


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


# The authors' names, written down a second time, in the other direction.

OFFICIAL_RESNET = [
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.0.body.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.0.body.conv1."),
    (r"^backbone\.res(\d)\.", lambda match: f"backbone.0.body.layer{int(match[1]) - 1}."),
    (r"^(backbone.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
]
OFFICIAL = [
    (r"feed_forward\.expand", "linear1"),
    (r"feed_forward\.contract", "linear2"),
    (r"feed_forward\.activation", "activation"),
    (r"^encoder(.*)\.attention_norm", r"transformer.encoder\1.norm1"),
    (r"^encoder(.*)\.feed_forward_norm", r"transformer.encoder\1.norm2"),
    (r"^encoder(.*)\.attention\.", r"transformer.encoder\1.self_attn."),
    (r"^encoder\.", "transformer.encoder."),
    (r"^decoder(.*)\.feed_forward_norm", r"transformer.decoder\1.norm3"),
    (r"scale_head", "query_scale"),
    (r"(output_projection|(?<=attention\.)output)\.", "out_proj."),
]
ONE_LEVEL = [
    (r"^input_projection\.", "input_proj."),
    (r"^decoder\.heads\.class_head", "class_embed"),
    (r"^decoder\.heads\.box_head", "bbox_embed"),
    (r"self_attention_norm", "norm1"),
    (r"cross_attention_norm", "norm2"),
]
CONDITIONAL = [
    (
        r"self_attention\.(query|key)_(content|position)",
        lambda m: f"sa_{m[1][0]}{m[2].replace('position', 'pos')}_proj",
    ),
    (
        r"cross_attention\.(query|key)_(content|position)",
        lambda m: f"ca_{m[1][0]}{m[2].replace('position', 'pos')}_proj",
    ),
    (r"cross_attention\.query_sine", "ca_qpos_sine_proj"),
    (r"self_attention\.value", "sa_v_proj"),
    (r"cross_attention\.value", "ca_v_proj"),
    (r"self_attention\.", "self_attn."),
    (r"cross_attention\.", "cross_attn."),
]
LEVELS = [
    (r"^input_projection\.level_embedding", "transformer.level_embed"),
    (r"^input_projection\.projections\.", "input_proj."),
    (r"^decoder\.heads\.(\d)\.class_head", r"class_embed.\1"),
    (r"^decoder\.heads\.(\d)\.box_head", r"bbox_embed.\1"),
    (r"^queries\.output_norm", "transformer.enc_output_norm"),
    (r"^queries\.output", "transformer.enc_output"),
    (r"self_attention_norm", "norm2"),
    (r"cross_attention_norm", "norm1"),
    (r"self_attention\.", "self_attn."),
    (r"cross_attention\.", "cross_attn."),
]
ANCHORS = [
    (r"^queries\.position", "refpoint_embed"),
    (r"position_head", "ref_point_head"),
    (r"size_head", "ref_anchor_head"),
]
OFFICIAL_FAMILY = {
    "detr": [
        *ONE_LEVEL,
        (r"^queries\.position", "query_embed"),
        (r"self_attention\.", "self_attn."),
        (r"cross_attention\.", "multihead_attn."),
    ],
    "conditional_detr": [
        *ONE_LEVEL,
        *CONDITIONAL,
        (r"^queries\.position", "query_embed"),
        (r"reference_head", "ref_point_head"),
    ],
    "dab_detr": [*ONE_LEVEL, *CONDITIONAL, *ANCHORS],
    "deformable_detr": [
        *LEVELS,
        (r"^decoder\.reference_points", "transformer.reference_points"),
        (r"^decoder\.start_norm", "transformer.pos_trans_norm"),
        (r"^decoder\.start_projection", "transformer.pos_trans"),
        (r"^queries\.heads\.class_head", "class_embed.3"),
        (r"^queries\.heads\.box_head", "bbox_embed.3"),
    ],
    "dn_detr": [*ONE_LEVEL, *CONDITIONAL, *ANCHORS],
    "dn_deformable_detr": [*LEVELS, *ANCHORS, (r"^queries\.content", "tgt_embed")],
    "dino": [
        *LEVELS,
        *ANCHORS,
        (r"^queries\.content", "transformer.tgt_embed"),
        (r"^queries\.heads\.class_head", "transformer.enc_out_class_embed"),
        (r"^queries\.heads\.box_head", "transformer.enc_out_bbox_embed"),
    ],
}


def to_official(weights: dict, family: str) -> dict:
    """Our weights under the authors' names, packed, tied and repeated as their files are."""
    official = {}
    for name, value in weights.items():
        for pattern, replacement in (
            OFFICIAL_RESNET + OFFICIAL + OFFICIAL_FAMILY[family] + [(r"^decoder\.", "transformer.decoder.")]
        ):
            name = re.sub(pattern, replacement, name)
        official[name] = value
    for name in [name for name in official if "query_projection" in name]:
        parts = [official.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        official[name.replace("query_projection.", "in_proj_")] = torch.cat(parts)
    official = {name.replace("value_projection", "value_proj"): value for name, value in official.items()}
    official = add_label_embedding(official, weights, family)
    if not any(name.startswith("transformer.level_embed") for name in official):
        return official
    official = {
        re.sub(r"(encoder.*self_attn|cross_attn)\.out_proj", r"\1.output_proj", n): v for n, v in official.items()
    }
    if family == "deformable_detr" and "queries.position.weight" in weights:
        halves = [weights["queries.position.weight"], weights["queries.content.weight"]]
        official = {name: value for name, value in official.items() if not name.startswith("queries")}
        official["query_embed.weight"] = torch.cat(halves, dim=1)
    heads = {name: value for name, value in official.items() if name.startswith(("class_embed", "bbox_embed"))}
    if not any(name.startswith("class_embed.1") for name in heads):  # one for all layers, listed for each
        heads = {name.replace("embed.0", f"embed.{layer}"): v for name, v in heads.items() for layer in range(3)}
    seen_by_the_decoder = ("class_embed", "bbox_embed") if family == "dino" else ("bbox_embed",)
    tied = {f"transformer.decoder.{n}": v for n, v in heads.items() if n.startswith(seen_by_the_decoder)}
    return {**official, **heads, **tied}


def add_label_embedding(theirs: dict, weights: dict, family: str) -> dict:
    """Adds the labels' embedding as the authors keep it: with rows behind those of the classes."""
    embedding = next((value for name, value in weights.items() if name.endswith("label_embedding.weight")), None)
    if embedding is None:
        return theirs
    unknown = weights["queries.content.weight"] if family == "dn_detr" else torch.randn(1, embedding.shape[1])
    left_out = ("training_groups", "queries.content") if family == "dn_detr" else ("training_groups",)
    theirs = {name: value for name, value in theirs.items() if not name.startswith(left_out)}
    return {**theirs, "label_enc.weight": torch.cat([embedding, unknown])}
