"""detectron2's FCOS from a configuration file; detectron2 itself builds it from Python alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS as PythonFCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

GROUPS = 32


@META_ARCH_REGISTRY.register()
class FCOS(PythonFCOS):
    """FCOS (1904.01355) with the keys of ``MODEL.RETINANET``; ``NORM`` "GN" normalises its head as published."""

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Boxes]]:
        """Classes and boxes of all anchors, image by image; without objects all are background.

        detectron2's own matching fails on an image without objects.
        """
        found = zip(*super().label_anchors(anchors, [entry for entry in gt_instances if len(entry)]), strict=True)
        everywhere = Boxes.cat(anchors)
        background = torch.full((len(everywhere),), self.num_classes, device=everywhere.device)
        pairs = [next(found) if len(entry) else (background, everywhere) for entry in gt_instances]
        return [labels for labels, _ in pairs], [boxes for _, boxes in pairs]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
        shapes = backbone.output_shape()
        head = FCOSHead(
            input_shape=[shapes[name] for name in node.IN_FEATURES],
            num_classes=node.NUM_CLASSES,
            conv_dims=[shapes[node.IN_FEATURES[0]].channels] * node.NUM_CONVS,
            # detectron2's head tries its norm on a single channel, which 32 groups cannot divide.
            norm=_group_norm if node.NORM == "GN" else node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
