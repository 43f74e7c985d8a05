"""The configuration that fits some weights, read from the shapes of the tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from ..matching import first_names
from .deformable_heads import count_layers
from .label_book import MAKERS
from .settings import Settings

# (blocks of the four stages, bottleneck blocks): detectron2's MODEL.RESNETS.DEPTH.
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
FOCAL: dict[str, Any] = {
    "MATCHER": {"COST_CLASS": 2.0, "COST_L1": 5.0, "COST_GIOU": 2.0},
    "LOSS": {"CLASSIFICATION": "focal", "CLASS_WEIGHT": 2.0, "L1_WEIGHT": 5.0, "GIOU_WEIGHT": 2.0},
}
# Plug-ins, matching costs and losses of each paper.
FAMILIES: dict[str, dict[str, Any]] = {
    "detr": {
        "DECODER": {"NAME": "DetrDecoder"},
        "ENCODER": {"NAME": "TransformerEncoder"},
        "QUERIES": {"NAME": "LearnedQueries"},
        "MATCHER": {"COST_CLASS": 1.0, "COST_L1": 5.0, "COST_GIOU": 2.0},
        "LOSS": {"CLASSIFICATION": "softmax", "CLASS_WEIGHT": 1.0, "L1_WEIGHT": 5.0, "GIOU_WEIGHT": 2.0},
    },
    "conditional_detr": {
        "DECODER": {"NAME": "ConditionalDecoder", "POSITION_GAIN": 0.0},
        "ENCODER": {"NAME": "TransformerEncoder"},
        "QUERIES": {"NAME": "LearnedQueries"},
        **FOCAL,
    },
    "dab_detr": {
        "DECODER": {"NAME": "DabDecoder"},
        "ENCODER": {"NAME": "DabEncoder"},
        "QUERIES": {"NAME": "AnchorBoxQueries"},
        **FOCAL,
        "LOSS": {**FOCAL["LOSS"], "CLASS_WEIGHT": 1.0},
    },
    "dn_detr": {
        "DECODER": {"NAME": "DabDecoder"},
        "ENCODER": {"NAME": "DabEncoder"},
        "QUERIES": {"NAME": "UnknownLabelQueries"},
        **FOCAL,
        "LOSS": {**FOCAL["LOSS"], "CLASS_WEIGHT": 1.0},
    },
    "deformable_detr": {
        "DECODER": {"NAME": "DeformableDecoder"},
        "ENCODER": {"NAME": "DeformableEncoder"},
        "QUERIES": {"NAME": "LearnedContentQueries"},
        **FOCAL,
    },
    "dn_deformable_detr": {
        "DECODER": {"NAME": "DabDeformableDecoder"},
        "ENCODER": {"NAME": "DeformableEncoder"},
        "QUERIES": {"NAME": "MarkedAnchorQueries"},
        **FOCAL,
        "LOSS": {**FOCAL["LOSS"], "CLASS_WEIGHT": 1.0},
    },
    "dino": {
        "DECODER": {"NAME": "DinoDecoder"},
        "ENCODER": {"NAME": "DeformableEncoder"},
        "QUERIES": {"NAME": "MixedQueries"},
        **FOCAL,
        "LOSS": {**FOCAL["LOSS"], "CLASS_WEIGHT": 1.0},
    },
}
# Families whose networks have several levels, and number their heads.
DEFORMABLE = ("deformable_detr", "dn_deformable_detr", "dino")


def describe(weights: Mapping[str, Tensor], family: str, settings: Settings) -> dict[str, Any]:
    """A configuration of ``DetrDetector``, as nested dictionaries.

    Args:
        weights: under our names. family: a key of ``FAMILIES``.

    Raises:
        CheckpointError: a tensor is missing without which the network cannot be described.
    """
    detr = {key: dict(value) for key, value in FAMILIES[family].items()}
    detr["ENCODER"]["NUM_LAYERS"] = count_layers(weights, "encoder.layers.")
    detr["DECODER"]["NUM_LAYERS"] = count_layers(weights, "decoder.layers.")
    detr["DECODER"]["POINT_TEMPERATURE"] = 10000.0
    expand = _tensor(weights, "decoder.layers.0.feed_forward.expand.weight")
    head = "decoder.heads.0" if family in DEFORMABLE else "decoder.heads"
    # A softmax head has one more row, for "no object".
    num_classes = len(_tensor(weights, f"{head}.class_head.weight")) - (family == "detr")
    node: dict[str, Any] = {
        "NUM_CLASSES": num_classes,
        "HIDDEN_DIM": expand.shape[1],
        "FFN_DIM": expand.shape[0],
        "NUM_HEADS": settings.num_heads,
        "POSITION_TEMPERATURE": settings.temperature,
        "IN_FEATURES": ["res5"],
        **detr,
    }
    if family in DEFORMABLE:
        _describe_levels(node, weights, settings)
    if family == "deformable_detr":
        _describe_deformable(node, weights, settings)
    if family == "dino":
        node["DECODER"]["SHARED_HEADS"] = count_layers(weights, "decoder.heads.") == 1
        node["NUM_QUERIES"] = len(_tensor(weights, "queries.content.weight"))
    if "NUM_QUERIES" not in node:
        node["NUM_QUERIES"] = len(_tensor(weights, "queries.position.weight"))
    if any(name.startswith("training_groups.") for name in weights):
        node["TRAINING_GROUPS"] = [MAKERS[family]]
    return {
        "MODEL": {
            "META_ARCHITECTURE": "DetrDetector",
            "BACKBONE": {"NAME": "build_detr_resnet_backbone", "FREEZE_AT": 2},
            "RESNETS": _describe_resnet(weights, settings, node["IN_FEATURES"]),
            "PIXEL_MEAN": [round(255 * value, 3) for value in settings.image_mean],
            "PIXEL_STD": [round(255 * value, 3) for value in settings.image_std],
            "DETR": node,
        },
        "INPUT": {"FORMAT": "RGB"},
        "TEST": {"DETECTIONS_PER_IMAGE": 300 if family in MAKERS else 100},
        "VERSION": 2,
    }


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


def _describe_deformable(node: dict[str, Any], weights: Mapping[str, Tensor], settings: Settings) -> None:
    node["DECODER"]["BOX_REFINEMENT"] = count_layers(weights, "decoder.heads.") > 1 or bool(settings.refinement)
    if "queries.output.weight" in weights:
        node["DECODER"].update(NAME="DeformableBoxDecoder", BOX_REFINEMENT=True)
        node["QUERIES"]["NAME"] = "TwoStageQueries"
        node["NUM_QUERIES"] = settings.num_queries


def _describe_resnet(weights: Mapping[str, Tensor], settings: Settings, features: list[str]) -> dict[str, Any]:
    blocks = tuple(count_layers(weights, f"backbone.res{stage}.") for stage in range(2, 6))
    bottleneck = "backbone.res2.0.conv3.weight" in weights
    if (blocks, bottleneck) not in RESNETS:
        names = sorted(name for name in weights if name.startswith(("backbone", "model.backbone")))
        raise CheckpointError(
            f"The backbone is no ResNet of 18, 34, 50, 101 or 152 layers: {blocks} blocks in its four stages. "
            f"Its tensors: {first_names(names)}."
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
            f"Tensors in the file: {first_names(sorted(weights))}."
        )
    return weights[name]
