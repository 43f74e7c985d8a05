"""detectron2's FCOS from a configuration file; detectron2 itself builds it from Python alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS as PythonFCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import giou_loss
from torch import Tensor, nn

from ..config.keys import Key, declare
from ..distributed import mean_number_over_processes, mean_over_processes

GROUPS = 32
CENTERNESS_WEIGHTS = "MODEL.FCOS.CENTERNESS_WEIGHTS"

declare(
    __name__,
    {
        CENTERNESS_WEIGHTS: Key(
            False,
            "`FCOS`: the box loss of a location weighs as much as its centre-ness, and the sum is divided by the sum "
            "of the weights, as published and in LGD; `False`: all alike, as in detectron2",
        ),
    },
)


@META_ARCH_REGISTRY.register()
class FCOS(PythonFCOS):
    """FCOS (1904.01355) with the keys of ``MODEL.RETINANET``; ``NORM`` "GN" normalises its head as published.

    Boxes and losses are computed in float32, whatever the predictions are: in half precision a corner at 500 pixels is
    off by up to two of them.

    Args:
        centerness_weights: in the box loss [P]; False: all locations of objects count alike, as in detectron2.
        arguments: detectron2's.
    """

    @configurable
    def __init__(self, *, centerness_weights: bool = False, **arguments: Any):
        super().__init__(**arguments)
        self.centerness_weights = centerness_weights

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The three losses; see :meth:`losses`. detectron2's box loss refuses half precision."""
        with torch.autocast(features[0].device.type, enabled=False):
            return super().forward_training(images, features, _in_float32(predictions), gt_instances)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detections in pixels of ``images``, best first."""
        return super().forward_inference(images, features, _in_float32(predictions))

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Boxes],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """``loss_fcos_{cls,loc,ctr}`` of predictions by level and ground truth by image, see the base class."""
        losses = super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness)
        if self.centerness_weights:
            losses["loss_fcos_loc"] = self._weighted_box_loss(anchors, gt_labels, pred_anchor_deltas, gt_boxes)
        return losses

    def _weighted_box_loss(
        self, anchors: list[Boxes], gt_labels: list[Tensor], pred_anchor_deltas: list[Tensor], gt_boxes: list[Boxes]
    ) -> Tensor:
        """``sum of c * (1 - GIoU) / sum of c`` over locations of objects, c their centre-ness.

        The divisor is the mean over the ranks, at least 1. Source: FCOS (1904.01355) [P], as LGD's code has it [C].
        """
        positive = torch.stack(gt_labels) != self.num_classes
        everywhere = Boxes.cat(anchors).tensor
        deltas = torch.cat(pred_anchor_deltas, dim=1)
        found = torch.stack([self.box2box_transform.apply_deltas(image, everywhere) for image in deltas])
        goal = torch.stack([boxes.tensor for boxes in gt_boxes])
        weight = self.compute_ctrness_targets(anchors, gt_boxes)[positive]
        total = mean_over_processes(weight.sum()).clamp(min=1)
        return (weight * giou_loss(found[positive], goal[positive])).sum() / total

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """The running divisor of the losses, which all processes share [C], so that one checkpoint has it."""
        value = mean_number_over_processes(value, self.device)
        return super()._ema_update(name, value, initial_value, momentum)

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
            "centerness_weights": cfg.MODEL.FCOS.CENTERNESS_WEIGHTS,
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


def _in_float32(predictions: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[values.float() for values in levels] for levels in predictions]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
