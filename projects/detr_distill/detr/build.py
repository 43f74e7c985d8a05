"""The parts of a detector, as the configuration names them; and the keys that name them."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config.keys import Key, declare
from ..config.ranges import Range, Words
from ..errors import ConfigError
from ..registry import (
    DECODER_REGISTRY,
    ENCODER_REGISTRY,
    NECK_REGISTRY,
    QUERIES_REGISTRY,
    TRAINING_GROUP_REGISTRY,
    look_up,
)
from .backbones.build import build_backbone
from .layers.deformable_kernel import KERNELS, choose_deformable_kernel
from .supervision.criterion import SetCriterion

declare(
    __name__,
    {
        "MODEL.DETR.NECK.NAME": Key(
            "SingleLevelNeck",
            'or `"MultiLevelNeck"`, which deformable attention needs, or `"AdaMixerNeck"` for AdaMixer, `"AnchorNeck"` '
            "for Anchor DETR",
        ),
        "MODEL.DETR.ENCODER.NAME": Key(
            "TransformerEncoder",
            'class of the encoder; `"DabEncoder"` for DAB-DETR, `"DeformableEncoder"`, `"SmcaEncoder"`, '
            '`"AnchorEncoder"`',
        ),
        "MODEL.DETR.DECODER.NAME": Key(
            "DetrDecoder",
            'or `"ConditionalDecoder"`, `"DabDecoder"`, `"DeformableDecoder"`, `"DeformableBoxDecoder"` (two-stage), '
            '`"DabDeformableDecoder"`, `"DinoDecoder"`, `"AdaMixerDecoder"`, `"SmcaDecoder"`, `"AnchorDecoder"`',
        ),
        "MODEL.DETR.QUERIES.NAME": Key(
            "LearnedQueries",
            'class of the queries; `"AnchorBoxQueries"` for DAB-DETR, `"LearnedContentQueries"` or '
            '`"TwoStageQueries"` for Deformable DETR, `"UnknownLabelQueries"` (DN-DETR on DAB), '
            '`"MarkedAnchorQueries"` (DN-DETR on DAB-Deformable), `"MixedQueries"` (DINO), `"AdaMixerQueries"`, '
            '`"AnchorPointQueries"` (Anchor DETR)',
        ),
        "MODEL.DETR.TRAINING_GROUPS": Key(
            (),
            'query groups that are decoded in training beside the detector\'s own: `"GroupQueries"` (Group DETR), '
            'also the control of fixed matching without a teacher, `"HybridQueries"` (H-DETR), `"DenoisingQueries"` '
            '(DN-DETR), `"ContrastiveDenoisingQueries"` (DINO)',
        ),
        "MODEL.DETR.SIZE_DIVISIBILITY": Key(
            1, "images are padded to a multiple of it, in pixels", Range(1, most=4096, whole=True)
        ),
        "MODEL.DETR.DEFORMABLE_KERNEL": Key(
            "auto",
            'what deformable attention and AdaMixer\'s sampling run on: `"triton"` (on CUDA), `"pytorch"`, or '
            '`"auto"`, Triton on CUDA where it works; Triton\'s gradients differ in the last digits from run to run; a '
            "teacher follows the student",
            Words(*KERNELS),
        ),
    },
)


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """Backbone, neck, encoder, decoder, queries, criterion and training groups, in the order that random numbers have.

    Raises:
        ConfigError: a name is not registered, or the number of classes is 0.
    """
    node = cfg.MODEL.DETR
    known_class_count(cfg)
    choose_deformable_kernel(node.DEFORMABLE_KERNEL)
    backbone = build_backbone(cfg)
    return {
        "backbone": backbone,
        "encoder": look_up(ENCODER_REGISTRY, node.ENCODER.NAME, "MODEL.DETR.ENCODER.NAME")(cfg),
        "decoder": look_up(DECODER_REGISTRY, node.DECODER.NAME, "MODEL.DETR.DECODER.NAME")(cfg),
        "queries": look_up(QUERIES_REGISTRY, node.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")(cfg),
        "criterion": SetCriterion(cfg),
        "neck": look_up(NECK_REGISTRY, node.NECK.NAME, "MODEL.DETR.NECK.NAME")(cfg, backbone.output_shape()),
        "training_groups": _build_training_groups(cfg),
    }


def known_class_count(cfg: CfgNode) -> int:
    """``MODEL.DETR.NUM_CLASSES``; raises ConfigError where nobody has put the training set's number there."""
    count: int = cfg.MODEL.DETR.NUM_CLASSES
    if not count:
        raise ConfigError(
            "MODEL.DETR.NUM_CLASSES is 0, which takes the number from the training set where a program of the project "
            "reads the configuration; read it with detr_distill.data.read_configuration, or give the number."
        )
    return count


def _build_training_groups(cfg: CfgNode) -> dict[str, nn.Module]:
    """What ``MODEL.DETR.TRAINING_GROUPS`` names; the random numbers of the other parts do not notice."""
    with torch.random.fork_rng():
        return {
            name: look_up(TRAINING_GROUP_REGISTRY, name, "MODEL.DETR.TRAINING_GROUPS")(cfg)
            for name in cfg.MODEL.DETR.TRAINING_GROUPS
        }
