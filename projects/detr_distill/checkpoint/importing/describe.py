"""The configuration that fits some weights, read from the shapes of the tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, first
from .deformable_heads import count_layers
from .family import Family, Settings

# (blocks of the four stages, bottleneck blocks): detectron2's MODEL.RESNETS.DEPTH.
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def describe(weights: Mapping[str, Tensor], family: Family, settings: Settings) -> dict[str, Any]:
    """A configuration of ``DetrDetector``, as nested dictionaries.

    Args:
        weights: under our names.

    Raises:
        CheckpointError: a tensor is missing without which the network cannot be described.
    """
    node = _describe_network(weights, family, settings)
    return {
        "MODEL": {
            "META_ARCHITECTURE": "DetrDetector",
            "BACKBONE": {"NAME": "build_detr_resnet_backbone", "FREEZE_AT": 2},
            "RESNETS": _describe_resnet(weights, settings, node["IN_FEATURES"]),
            "PIXEL_MEAN": [round(value, 3) for value in settings.pixel_mean],
            "PIXEL_STD": [round(value, 3) for value in settings.pixel_std],
            "DETR": node,
        },
        "INPUT": {"FORMAT": "RGB"},
        "TEST": {"DETECTIONS_PER_IMAGE": family.detections_per_image},
        "VERSION": 2,
    }


def describe_deformable(node: dict[str, Any], weights: Mapping[str, Tensor], settings: Settings) -> None:
    """Deformable DETR: boxes refined from layer to layer or not, queries learned or chosen by the encoder."""
    node["DECODER"]["BOX_REFINEMENT"] = count_layers(weights, "decoder.heads.") > 1 or bool(settings.refinement)
    if "queries.output.weight" in weights:
        node["DECODER"].update(NAME="DeformableBoxDecoder", BOX_REFINEMENT=True)
        node["QUERIES"]["NAME"] = "TwoStageQueries"
        node["NUM_QUERIES"] = settings.num_queries


def describe_dino(node: dict[str, Any], weights: Mapping[str, Tensor], settings: Settings) -> None:
    """DINO: heads shared or not; only the contents of its queries are learned."""
    node["DECODER"]["SHARED_HEADS"] = count_layers(weights, "decoder.heads.") == 1
    node["NUM_QUERIES"] = len(_tensor(weights, "queries.content.weight"))


def _describe_network(weights: Mapping[str, Tensor], family: Family, settings: Settings) -> dict[str, Any]:
    """The node ``MODEL.DETR``."""
    parts = family.node()
    parts["ENCODER"]["NUM_LAYERS"] = count_layers(weights, "encoder.layers.")
    parts["DECODER"]["NUM_LAYERS"] = count_layers(weights, "decoder.layers.")
    parts["DECODER"]["POINT_TEMPERATURE"] = 10000.0
    expand = _tensor(weights, "decoder.layers.0.feed_forward.expand.weight")
    # A softmax head has one more row, for "no object".
    background = 1 if family.supervision.classification == "softmax" else 0
    node: dict[str, Any] = {
        "NUM_CLASSES": len(_tensor(weights, f"{family.head}.class_head.weight")) - background,
        "HIDDEN_DIM": expand.shape[1],
        "FFN_DIM": expand.shape[0],
        "NUM_HEADS": settings.num_heads,
        "POSITION_TEMPERATURE": settings.temperature,
        "IN_FEATURES": ["res5"],
        **parts,
    }
    if settings.logit_epsilon:
        node["LOGIT_EPSILON"] = settings.logit_epsilon
    if family.has_levels:
        _describe_levels(node, weights, settings)
    family.describe(node, weights, settings)
    if "NUM_QUERIES" not in node:
        node["NUM_QUERIES"] = len(_tensor(weights, "queries.position.weight"))
    if any(name.startswith("training_groups.") for name in weights):
        node["TRAINING_GROUPS"] = [family.label_owner]
    return node


def _describe_levels(node: dict[str, Any], weights: Mapping[str, Tensor], settings: Settings) -> None:
    levels = count_layers(weights, "input_projection.projections.")
    kernels = [_tensor(weights, f"input_projection.projections.{level}.0.weight").shape[-1] for level in range(levels)]
    # Levels beyond the backbone's features are made by 3x3 convolutions.
    used = max(kernels.count(1), 1)
    node["IN_FEATURES"] = ["res2", "res3", "res4", "res5"][-used:]
    node["NUM_LEVELS"] = levels
    node["NECK"] = {"NAME": "MultiLevelNeck", "POSITION_OFFSET": settings.position_offset}
    samples = settings.num_heads * max(levels, 1)
    for part, attention in (("ENCODER", "encoder.layers.0.attention"), ("DECODER", "decoder.layers.0.cross_attention")):
        node[part]["NUM_POINTS"] = len(_tensor(weights, f"{attention}.attention_weights.weight")) // samples


def _describe_resnet(weights: Mapping[str, Tensor], settings: Settings, features: list[str]) -> dict[str, Any]:
    blocks = tuple(count_layers(weights, f"backbone.res{stage}.") for stage in range(2, 6))
    bottleneck = "backbone.res2.0.conv3.weight" in weights
    if (blocks, bottleneck) not in RESNETS:
        names = sorted(name for name in weights if name.startswith(("backbone", "model.backbone")))
        raise CheckpointError(
            f"The backbone is no ResNet of 18, 34, 50, 101 or 152 layers: {blocks} blocks in its four stages. "
            f"Its tensors: {first(names)}."
        )
    return {
        "DEPTH": RESNETS[blocks, bottleneck],
        "RES2_OUT_CHANNELS": 256 if bottleneck else 64,
        "STRIDE_IN_1X1": False,
        "RES5_DILATION": 2 if settings.dilation else 1,
        "OUT_FEATURES": list(features),
    }


def _tensor(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise CheckpointError(
            f"There is no tensor that would be {name}, which every network of this family has. "
            f"Tensors in the file: {first(sorted(weights))}."
        )
    return weights[name]
