"""How a backbone is built from its name, and what it asks of the size of images."""

from __future__ import annotations

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from ...registry import look_up


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone of ``MODEL.BACKBONE.NAME``, as detectron2's function of this name builds it.

    Raises:
        ConfigError: the name is unknown; lists those that are known.
    """
    builder = look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    return builder(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))


def padding_multiple(wanted: int, backbone: Backbone) -> int:
    """Images are padded to a multiple of this, in pixels: of what the configuration wants and the backbone needs."""
    return math.lcm(wanted, max(backbone.size_divisibility, 1))
