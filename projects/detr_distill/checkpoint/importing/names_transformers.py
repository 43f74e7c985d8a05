"""Parameter names of Hugging Face transformers: as its models have them in memory, and as its files keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .deformable_heads import arrange_deformable
from .renaming import FEED_FORWARD, PROJECTIONS, SEPARATE_PROJECTIONS, TRANSFORMERS_BACKBONE, Rule, rename_all

SHARED: Sequence[Rule] = (
    (r"^model\.(input_projection|encoder|decoder)", r"\1"),
    (r"^decoder\.layernorm", "decoder.norm"),
    (r"^encoder(.*)\.self_attn_layer_norm", r"encoder\1.attention_norm"),
    (r"^encoder(.*)\.self_attn\.", r"encoder\1.attention."),
    *FEED_FORWARD,
    (r"(\.mlp)?\.final_layer_norm", ".feed_forward_norm"),
)
HEADS: Sequence[Rule] = (
    (r"^(class_labels_classifier|class_embed)\.", "decoder.heads.class_head."),
    (r"^(bbox_predictor|decoder\.bbox_embed)\.", "decoder.heads.box_head."),
)
ATTENTION: Sequence[Rule] = (
    (r"^model\.query_position_embeddings", "queries.position"),
    (r"^decoder(.*)\.self_attn_layer_norm", r"decoder\1.self_attention_norm"),
    (r"\.encoder_attn_layer_norm", ".cross_attention_norm"),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
)
DAB: Sequence[Rule] = (
    (r"^model\.query_refpoint_embeddings", "queries.position"),
    (r"(self|cross)_attn\.\1_attn_layer_norm", r"\1_attention_norm"),
    (r"(self|cross)_attn\.\1_attn\.output_proj", r"\1_attention.output"),
    (r"(self|cross)_attn\.\1_attn_query_pos_sine_proj", r"\1_attention.query_sine"),
    (r"(self|cross)_attn\.\1_attn_(query|key)_content_proj", r"\1_attention.\2_content"),
    (r"(self|cross)_attn\.\1_attn_(query|key)_pos_proj", r"\1_attention.\2_position"),
    (r"(self|cross)_attn\.\1_attn_value_proj", r"\1_attention.value"),
    (r"\.query_scale\.", ".scale_head."),
    (r"\.ref_point_head", ".position_head"),
    (r"\.ref_anchor_head", ".size_head"),
)
DEFORMABLE: Sequence[Rule] = (
    (r"^model\.level_embed$", "input_projection.level_embedding"),
    (r"^model\.input_proj\.", "input_projection.projections."),
    (r"^model\.reference_points", "decoder.reference_points"),
    (r"^model\.enc_output_norm", "queries.output_norm"),
    (r"^model\.enc_output", "queries.output"),
    (r"^model\.pos_trans_norm", "decoder.start_norm"),
    (r"^model\.pos_trans", "decoder.start_projection"),
    (r"^(model\.decoder\.)?class_embed\.(\d+)", r"decoder.heads.\2.class_head"),
    (r"^(model\.decoder\.)?bbox_embed\.(\d+)", r"decoder.heads.\2.box_head"),
)
RULES: dict[str, Sequence[Rule]] = {
    "detr": (*SHARED, *HEADS, *ATTENTION, *PROJECTIONS),
    "conditional_detr": (
        *SHARED,
        *HEADS,
        *ATTENTION,
        *SEPARATE_PROJECTIONS,
        *PROJECTIONS,
        (r"\.ref_point_head", ".reference_head"),
    ),
    "dab_detr": (*SHARED, *HEADS, *DAB, *PROJECTIONS),
    "deformable_detr": (*DEFORMABLE, *SHARED, *ATTENTION, *PROJECTIONS),
}


def rename_transformers(
    weights: Mapping[str, Tensor], family: str, refinement: bool | None = None
) -> dict[str, Tensor]:
    """The state of a transformers detector, or the content of its file, under our names.

    Args:
        family: a key of ``RULES``. refinement: see :func:`arrange_deformable`.
    """
    renamed = rename_all(weights, RULES[family], TRANSFORMERS_BACKBONE)
    return arrange_deformable(renamed, refinement) if family == "deformable_detr" else renamed
