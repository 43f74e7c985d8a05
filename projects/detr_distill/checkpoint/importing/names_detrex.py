"""Parameter names of detrex: DETR, Conditional, DAB, DN and Deformable DETR, DINO [C].

Its layers number their attentions, norms and feed-forward parts in the order in which they run; its ResNets are
detectron2's own, under the names that ours have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ...errors import CheckpointError
from ..matching import first_names
from .deformable_heads import arrange_deformable, arrange_heads, count_layers
from .label_embedding import divide_label_embedding
from .renaming import PROJECTIONS, Rule, rename_all, split_packed

# Matches no name: the backbone's names stay as they are.
NO_BACKBONE = re.compile(r"^\b$")

SHARED: Sequence[Rule] = (
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^((?:en|de)coder)\.post_norm_layer\.", r"\1.norm."),
    (r"\.attn\.", "."),
    (r"^encoder(.*)\.attentions\.0\.", r"encoder\1.attention."),
    (r"^encoder(.*)\.norms\.0\.", r"encoder\1.attention_norm."),
    (r"^encoder(.*)\.norms\.1\.", r"encoder\1.feed_forward_norm."),
    (r"^decoder(.*)\.attentions\.0\.", r"decoder\1.self_attention."),
    (r"^decoder(.*)\.attentions\.1\.", r"decoder\1.cross_attention."),
    (r"^decoder(.*)\.norms\.0\.", r"decoder\1.self_attention_norm."),
    (r"^decoder(.*)\.norms\.1\.", r"decoder\1.cross_attention_norm."),
    (r"^decoder(.*)\.norms\.2\.", r"decoder\1.feed_forward_norm."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".feed_forward.expand."),
    (r"\.ffns\.0\.layers\.0\.1\.", ".feed_forward.activation."),
    (r"\.ffns\.0\.layers\.1\.", ".feed_forward.contract."),
)
ONE_LEVEL: Sequence[Rule] = (
    (r"^input_proj\.", "input_projection."),
    (r"^(query_embed|refpoint_embed|anchor_box_embed)\.", "queries.position."),
    (r"^denoising_generator\.label_encoder\.", "label_enc."),
    (r"^class_embed\.", "decoder.heads.class_head."),
    (r"^(decoder\.)?bbox_embed\.", "decoder.heads.box_head."),
)
CONDITIONAL: Sequence[Rule] = (
    (r"\.query_pos_sine_proj\.", ".query_sine."),
    (r"\.(query|key)_content_proj\.", r".\1_content."),
    (r"\.(query|key)_pos_proj\.", r".\1_position."),
    (r"^decoder(.*)\.value_proj\.", r"decoder\1.value."),
    (r"^decoder(.*)\.out_proj\.", r"decoder\1.output."),
    (r"\.query_scale\.", ".scale_head."),
)
DAB: Sequence[Rule] = ((r"\.ref_point_head", ".position_head"), (r"\.ref_anchor_head", ".size_head"))
LEVELS: Sequence[Rule] = (
    (r"^transformer\.level_embeds$", "input_projection.level_embedding"),
    (r"^neck\.convs\.(\d+)\.conv\.", r"input_projection.projections.\1.0."),
    (r"^neck\.convs\.(\d+)\.norm\.", r"input_projection.projections.\1.1."),
    (r"^query_embedding\.", "queries.position."),
    (r"^transformer\.reference_points", "decoder.reference_points"),
    # An early version misspells it.
    (r"^transformer\.enc_out(put|pout)_norm", "queries.output_norm"),
    (r"^transformer\.enc_output", "queries.output"),
    (r"^transformer\.pos_trans_norm", "decoder.start_norm"),
    (r"^transformer\.pos_trans", "decoder.start_projection"),
    (r"^transformer\.tgt_embed\.", "queries.content."),
    (r"^decoder\.ref_point_head", "decoder.position_head"),
    (r"^(decoder\.)?class_embed\.(\d+)", r"decoder.heads.\2.class_head"),
    (r"^(decoder\.)?bbox_embed\.(\d+)", r"decoder.heads.\2.box_head"),
)
RULES: dict[str, Sequence[Rule]] = {
    "detr": (*SHARED, *ONE_LEVEL, *PROJECTIONS),
    "conditional_detr": (
        *SHARED,
        *ONE_LEVEL,
        *CONDITIONAL,
        *PROJECTIONS,
        (r"\.ref_point_head", ".reference_head"),
    ),
    "dab_detr": (*SHARED, *ONE_LEVEL, *CONDITIONAL, *DAB, *PROJECTIONS),
    "dn_detr": (*SHARED, *ONE_LEVEL, *CONDITIONAL, *DAB, *PROJECTIONS),
    "deformable_detr": (*SHARED, *LEVELS, *PROJECTIONS),
    "dino": (*SHARED, *LEVELS, *PROJECTIONS),
}


def rename_detrex(weights: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The state of a detrex detector under our names; what its criterion stores is left out.

    Args:
        family: a key of ``RULES``.
    """
    kept = {name: value for name, value in weights.items() if not name.startswith("criterion.")}
    renamed = rename_all(split_packed(_number_extra_levels(kept)), RULES[family], NO_BACKBONE)
    if family == "deformable_detr":
        renamed = arrange_deformable(renamed)
    if family == "dino":
        renamed = arrange_heads(renamed, own_heads=True)
    return divide_label_embedding(renamed, family)


def detrex_family(names: Iterable[str]) -> str:
    """The family that a detrex checkpoint belongs to, by its parameter names.

    Raises:
        CheckpointError: none of those that can be imported.
    """
    names = set(names)
    levels = "transformer.level_embeds" in names
    places = "transformer.decoder.ref_point_head.layers.0.weight" in names
    anchors = "transformer.decoder.ref_anchor_head.layers.0.weight" in names
    signs = {
        "dino": levels and "transformer.tgt_embed.weight" in names,
        "deformable_detr": levels and not places,
        "dn_detr": anchors and "denoising_generator.label_encoder.weight" in names,
        "dab_detr": anchors,
        "conditional_detr": places and not levels,
        "detr": "transformer.decoder.layers.0.attentions.1.attn.in_proj_weight" in names,
    }
    found = next((family for family, sign in signs.items() if sign), None)
    if found is None or not any(".attentions.0." in name for name in names):
        raise CheckpointError(
            f"No detector of detrex that can be imported: those are {', '.join(sorted(RULES))}. "
            f"Tensors in the file: {first_names(sorted(names))}."
        )
    return found


def _number_extra_levels(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Levels beyond the backbone's features are numbered on from them."""
    count = count_layers(weights, "neck.convs.")
    pattern = re.compile(r"^neck\.extra_convs\.(\d+)")
    return {pattern.sub(lambda match: f"neck.convs.{count + int(match[1])}", n): value for n, value in weights.items()}
