"""Our weights under detrex's names, written down a second time, in the other direction."""

from __future__ import annotations

import re

import torch

SHARED = [
    (r"feed_forward\.expand", "ffns.0.layers.0.0"),
    (r"feed_forward\.activation", "ffns.0.layers.0.1"),
    (r"feed_forward\.contract", "ffns.0.layers.1"),
    (r"^(encoder.*)\.attention_norm", r"transformer.\1.norms.0"),
    (r"^(encoder.*)\.feed_forward_norm", r"transformer.\1.norms.1"),
    (r"^(decoder.*)\.self_attention_norm", r"\1.norms.0"),
    (r"^(decoder.*)\.cross_attention_norm", r"\1.norms.1"),
    (r"^(decoder.*)\.feed_forward_norm", r"\1.norms.2"),
    (r"\.(self_)?attention\.", ".attentions.0."),
    (r"\.cross_attention\.", ".attentions.1."),
    (r"scale_head", "query_scale"),
]
ONE_LEVEL = [
    (r"^input_projection\.", "input_proj."),
    (r"^decoder\.norm", "decoder.post_norm_layer"),
    (r"^decoder\.heads\.class_head", "class_embed"),
    (r"^decoder\.heads\.box_head", "bbox_embed"),
]
CONDITIONAL = [
    (r"attentions\.(\d)\.(query|key)_content", r"attentions.\1.\2_content_proj"),
    (r"attentions\.(\d)\.(query|key)_position", r"attentions.\1.\2_pos_proj"),
    (r"attentions\.1\.query_sine", "attentions.1.query_pos_sine_proj"),
    (r"^(decoder.*attentions\.\d)\.value\.", r"\1.value_proj."),
    (r"^(decoder.*attentions\.\d)\.output\.", r"\1.out_proj."),
]
ANCHORS = [
    (r"^queries\.position", "anchor_box_embed"),
    (r"position_head", "ref_point_head"),
    (r"size_head", "ref_anchor_head"),
]
LEVELS = [
    (r"^input_projection\.level_embedding", "transformer.level_embeds"),
    (r"^input_projection\.projections\.(\d)\.0\.", r"neck.convs.\1.conv."),
    (r"^input_projection\.projections\.(\d)\.1\.", r"neck.convs.\1.norm."),
    (r"^queries\.output_norm", "transformer.enc_output_norm"),
    (r"^queries\.output", "transformer.enc_output"),
    (r"^queries\.content", "transformer.tgt_embed"),
    (r"^queries\.heads\.class_head", "class_embed.3"),
    (r"^queries\.heads\.box_head", "bbox_embed.3"),
    (r"^decoder\.heads\.(\d)\.class_head", r"class_embed.\1"),
    (r"^decoder\.heads\.(\d)\.box_head", r"bbox_embed.\1"),
    (r"^decoder\.position_head", "transformer.decoder.ref_point_head"),
    (r"^decoder\.reference_points", "transformer.reference_points"),
    (r"^decoder\.start_norm", "transformer.pos_trans_norm"),
    (r"^decoder\.start_projection", "transformer.pos_trans"),
]
FAMILIES = {
    "detr": [*ONE_LEVEL, (r"^queries\.position", "query_embed")],
    "conditional_detr": [
        *ONE_LEVEL,
        *CONDITIONAL,
        (r"^queries\.position", "query_embed"),
        (r"reference_head", "ref_point_head"),
    ],
    "dab_detr": [*ONE_LEVEL, *CONDITIONAL, *ANCHORS],
    "dn_detr": [*ONE_LEVEL, *CONDITIONAL, *ANCHORS],
    "deformable_detr": LEVELS,
    "dino": LEVELS,
}
# Heads that the decoder holds as well.
SEEN_BY_DECODER = {
    "detr": (),
    "conditional_detr": (),
    "dab_detr": ("bbox_embed",),
    "dn_detr": ("bbox_embed",),
    "deformable_detr": ("bbox_embed", "class_embed"),
    "dino": ("bbox_embed", "class_embed"),
}


def to_detrex(weights: dict, family: str) -> dict:
    """Our weights as detrex stores them: dense attentions packed, further levels in a list of their own, heads tied."""
    theirs = {}
    for name, value in weights.items():
        for pattern, replacement in [*SHARED, *FAMILIES[family], (r"^decoder\.", "transformer.decoder.")]:
            name = name if name.startswith("backbone.") else re.sub(pattern, replacement, name)
        theirs[name] = value
    for name in [name for name in theirs if "query_projection" in name]:
        parts = [theirs.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        theirs[name.replace("query_projection.", "attn.in_proj_")] = torch.cat(parts)
        stem, kind = name.split("query_projection.")
        theirs[f"{stem}attn.out_proj.{kind}"] = theirs.pop(f"{stem}output_projection.{kind}")
    rest = (
        ("value_projection", "value_proj"),
        ("output_projection", "output_proj"),
        ("neck.convs.3", "neck.extra_convs.0"),
    )
    for ours, detrex in rest:
        theirs = {name.replace(ours, detrex): value for name, value in theirs.items()}
    labels = next((value for name, value in weights.items() if name.endswith("label_embedding.weight")), None)
    theirs = {name: value for name, value in theirs.items() if not name.startswith("training_groups")}
    if family == "dino":
        theirs["label_enc.weight"] = labels
    if family == "dn_detr":
        unknown = theirs.pop("queries.content.weight")
        theirs["denoising_generator.label_encoder.weight"] = torch.cat([labels, unknown])
    if family == "deformable_detr" and "queries.position.weight" in weights:
        halves = [theirs.pop("queries.position.weight"), theirs.pop("transformer.tgt_embed.weight")]
        theirs["query_embedding.weight"] = torch.cat(halves, dim=1)
    tied = {f"transformer.decoder.{name}": v for name, v in theirs.items() if name.startswith(SEEN_BY_DECODER[family])}
    return {**theirs, **tied, "criterion.empty_weight": torch.ones(6)}
