"""Parameter names of the authors' own code: DETR, Conditional, DAB, DN and Deformable DETR, DINO [C]."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from .deformable_heads import arrange_deformable, arrange_heads
from .label_embedding import divide_label_embedding
from .renaming import (
    FEED_FORWARD,
    PROJECTIONS,
    SEPARATE_PROJECTIONS,
    TORCHVISION_BACKBONE,
    Rule,
    rename_all,
    split_packed,
)

SHARED: Sequence[Rule] = (
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^(query_embed|refpoint_embed)\.", "queries.position."),
    (r"^encoder(.*)\.norm1\.", r"encoder\1.attention_norm."),
    (r"^encoder(.*)\.norm2\.", r"encoder\1.feed_forward_norm."),
    (r"^encoder(.*)\.self_attn\.", r"encoder\1.attention."),
    (r"\.norm3\.", ".feed_forward_norm."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.(multihead_attn|cross_attn)\.", ".cross_attention."),
    *FEED_FORWARD,
)
ONE_LEVEL: Sequence[Rule] = (
    (r"^input_proj\.", "input_projection."),
    (r"^decoder(.*)\.norm1\.", r"decoder\1.self_attention_norm."),
    (r"^decoder(.*)\.norm2\.", r"decoder\1.cross_attention_norm."),
    (r"^class_embed\.", "decoder.heads.class_head."),
    (r"^(decoder\.)?bbox_embed\.", "decoder.heads.box_head."),
)
DEFORMABLE: Sequence[Rule] = (
    (r"^transformer\.level_embed$", "input_projection.level_embedding"),
    (r"^input_proj\.", "input_projection.projections."),
    (r"^transformer\.reference_points", "decoder.reference_points"),
    (r"^transformer\.enc_output_norm", "queries.output_norm"),
    (r"^transformer\.enc_output", "queries.output"),
    (r"^transformer\.pos_trans_norm", "decoder.start_norm"),
    (r"^transformer\.pos_trans", "decoder.start_projection"),
    (r"^(decoder\.)?class_embed\.(\d+)", r"decoder.heads.\2.class_head"),
    (r"^(decoder\.)?bbox_embed\.(\d+)", r"decoder.heads.\2.box_head"),
    # Numbered in the order in which the layer's constructor makes them: cross-attention comes first there.
    (r"^decoder(.*)\.norm1\.", r"decoder\1.cross_attention_norm."),
    (r"^decoder(.*)\.norm2\.", r"decoder\1.self_attention_norm."),
)
ANCHORS: Sequence[Rule] = (
    (r"^transformer\.tgt_embed\.", "queries.content."),
    (r"^tgt_embed\.", "queries.content."),
    (r"^transformer\.enc_out_class_embed\.", "queries.heads.class_head."),
    (r"^transformer\.enc_out_bbox_embed\.", "queries.heads.box_head."),
    (r"\.ref_point_head", ".position_head"),
    (r"\.query_scale\.", ".scale_head."),
)
DAB: Sequence[Rule] = (
    *SHARED,
    *ONE_LEVEL,
    *SEPARATE_PROJECTIONS,
    *PROJECTIONS,
    (r"\.ref_point_head", ".position_head"),
    (r"\.ref_anchor_head", ".size_head"),
)
RULES: dict[str, Sequence[Rule]] = {
    "detr": (*SHARED, *ONE_LEVEL, *PROJECTIONS),
    "conditional_detr": (
        *SHARED,
        *ONE_LEVEL,
        *SEPARATE_PROJECTIONS,
        *PROJECTIONS,
        (r"\.ref_point_head", ".reference_head"),
    ),
    "dab_detr": DAB,
    "dn_detr": DAB,
    "deformable_detr": (*SHARED, *DEFORMABLE, *PROJECTIONS),
    "dn_deformable_detr": (*SHARED, *ANCHORS, *DEFORMABLE, *PROJECTIONS),
    "dino": (*SHARED, *ANCHORS, *DEFORMABLE, *PROJECTIONS),
}


def rename_official(weights: Mapping[str, Tensor], family: str, refinement: bool | None = None) -> dict[str, Tensor]:
    """The state of the authors' detector under our names.

    Args:
        family: a key of ``RULES``. refinement: of Deformable DETR, see :func:`arrange_deformable`.
    """
    renamed = rename_all(split_packed(weights), RULES[family], TORCHVISION_BACKBONE)
    if family == "deformable_detr":
        return arrange_deformable(renamed, refinement)
    if family in ("dn_deformable_detr", "dino"):
        renamed = arrange_heads(renamed, own_heads=True if family == "dn_deformable_detr" else None)
    return divide_label_embedding(renamed, family)


def recognise(names: Collection[str]) -> str | None:
    """The family that an authors' checkpoint belongs to by its parameter names; None where none is certain."""
    signs = {
        "dino": "transformer.enc_out_class_embed.weight",
        "dn_deformable_detr": "tgt_embed.weight",
        "deformable_detr": "transformer.level_embed",
        "dn_detr": "label_enc.weight",
        "dab_detr": "refpoint_embed.weight",
        "conditional_detr": "transformer.decoder.layers.0.ca_qcontent_proj.weight",
        "detr": "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    }
    return next((family for family, sign in signs.items() if sign in names), None)
