"""Ordered rules from one project's parameter names to another's, and what all sources have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ...errors import CheckpointError
from ..torchvision_resnet import rename_parameter

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Where a source keeps its backbone: transformers' own ResNets and timm's, the authors' torchvision ResNets.
TRANSFORMERS_BACKBONE = re.compile(r"^model\.backbone\.(conv_encoder\.)?model\.(_backbone\.)?")
TORCHVISION_BACKBONE = re.compile(r"^backbone\.0\.body\.")

TRANSFORMERS_RESNET: Sequence[Rule] = (
    (r"^embedder\.embedder", "stem.conv1"),
    (r"^encoder\.stages\.(\d+)\.layers", lambda match: f"res{int(match[1]) + 2}"),
    (r"\.layer\.(\d+)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.normalization\.", ".norm."),
    (r"\.convolution\.", "."),
)
# The two layers of a feed-forward part and the four projections of an attention, in all spellings that are in use.
FEED_FORWARD: Sequence[Rule] = (
    (r"\.mlp\.(fc\d|activation_fn)", r".\1"),
    (r"\.(fc1|linear1)\.", ".feed_forward.expand."),
    (r"\.(fc2|linear2)\.", ".feed_forward.contract."),
    (r"\.(activation_fn|activation)\.", ".feed_forward.activation."),
)
PROJECTIONS: Sequence[Rule] = (
    (r"\.q_proj\.", ".query_projection."),
    (r"\.k_proj\.", ".key_projection."),
    (r"\.(v_proj|value_proj)\.", ".value_projection."),
    (r"\.(o_proj|out_proj|output_proj)\.", ".output_projection."),
)
# Decoder attention whose projections stand in the layer itself: sa_ of self-attention, ca_ of cross-attention.
SEPARATE_PROJECTIONS: Sequence[Rule] = (
    (r"\.sa_(\w+)\.", r".self_attention.\1."),
    (r"\.ca_(\w+)\.", r".cross_attention.\1."),
    (r"\.(qpos_sine_proj|q_pos_sine_proj)\.", ".query_sine."),
    (r"\.(qcontent_proj|q_content_proj)\.", ".query_content."),
    (r"\.(kcontent_proj|k_content_proj)\.", ".key_content."),
    (r"\.(qpos_proj|q_pos_proj)\.", ".query_position."),
    (r"\.(kpos_proj|k_pos_proj)\.", ".key_position."),
    (r"^decoder(.*)\.v_proj\.", r"decoder\1.value."),
    (r"^decoder(.*)\.(o_proj|out_proj)\.", r"decoder\1.output."),
    (r"\.query_scale\.", ".scale_head."),
)


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Applies every rule in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_all(weights: Mapping[str, Tensor], rules: Sequence[Rule], backbone: re.Pattern[str]) -> dict[str, Tensor]:
    """Weights under our names; counters of batch normalisation are left out, tied copies are joined.

    Raises:
        CheckpointError: two different tensors come to the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        place = backbone.match(name)
        new = rename_backbone(name[place.end() :]) if place else rename(name, rules)
        if new in renamed and not renamed[new].equal(value):
            raise CheckpointError(
                f"{name} is one of two different tensors for {new}: the layers of this checkpoint do not share what "
                "they share here, and it cannot be imported."
            )
        renamed[new] = value
    return renamed


def rename_backbone(name: str) -> str:
    """A ResNet's parameter, without prefix, in transformers' or in torchvision's (and timm's) names."""
    if re.match(r"(embedder|encoder)\.", name):
        return "backbone." + rename(name, TRANSFORMERS_RESNET)
    return "backbone." + rename_parameter(name)


def split_packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divides every ``in_proj_weight`` (3C, C) and ``in_proj_bias`` (3C) into query, key and value."""
    split: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, packed, kind = name.rpartition("in_proj_")
        if not packed:
            split[name] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            split[f"{stem}{part}_proj.{kind}"] = rows
    return split
