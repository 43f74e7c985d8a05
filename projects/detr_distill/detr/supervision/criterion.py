"""The detection loss of DETR-type detectors, on all decoder layers at once.

Letters: L layers, B images, Q queries, G objects (padded), M pairs (padded), K classes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ...errors import ConfigError
from ...structures import DecoderOutput, Pairs, QueryGroup, Targets
from ..boxes import generalized_iou
from .assignment import Cost
from .matcher import HungarianMatcher


class SetCriterion(nn.Module):
    """Hungarian matching loss with deep supervision, for one or more query groups.

    ``weight_class * class + weight_l1 * L1 + weight_giou * (1 - GIoU)``, the last two over matched pairs, all divided
    by the number of objects (mean over the ranks, at least 1). Softmax: cross-entropy with weight
    ``no_object_weight`` on unmatched queries (2005.12872) [P]. Focal: sigmoid focal loss over all queries and classes
    (2108.06152) [P]. A group's padding has no loss.

    Args:
        num_classes: K. matcher: gives the cost. classification: "softmax" or "focal".
        deep_supervision: False keeps the last layer's loss only.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        classification: str,
        weight_class: float,
        weight_l1: float,
        weight_giou: float,
        no_object_weight: float = 0.1,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        deep_supervision: bool = True,
    ):
        super().__init__()
        if classification not in ("softmax", "focal"):
            raise ConfigError(
                f"MODEL.DETR.LOSS.CLASSIFICATION is '{classification}'. Known: 'softmax' (with a no-object class), "
                "'focal' (a sigmoid for each class)."
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.classification = classification
        self.weights = {"class": weight_class, "box": weight_l1, "giou": weight_giou}
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.deep_supervision = deep_supervision
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR
        focal = {"focal_alpha": node.LOSS.FOCAL_ALPHA, "focal_gamma": node.LOSS.FOCAL_GAMMA}
        matcher = HungarianMatcher(node.MATCHER.COST_CLASS, node.MATCHER.COST_L1, node.MATCHER.COST_GIOU, **focal)
        return {
            "num_classes": node.NUM_CLASSES,
            "matcher": matcher,
            "classification": node.LOSS.CLASSIFICATION,
            "weight_class": node.LOSS.CLASS_WEIGHT,
            "weight_l1": node.LOSS.L1_WEIGHT,
            "weight_giou": node.LOSS.GIOU_WEIGHT,
            "no_object_weight": node.LOSS.NO_OBJECT_WEIGHT,
            "deep_supervision": node.LOSS.DEEP_SUPERVISION,
            **focal,
        }

    def cost(self, output: DecoderOutput, group: QueryGroup, targets: Targets) -> Cost:
        """The group's matching cost, with the layers replaced on which an assignment is forced."""
        values = self.matcher(output, targets)
        for layer, forced in group.forced_cost.items():
            values[layer] = forced
        return Cost(f"ground truth, group '{group.name}'", values, targets.counts)

    def forward(self, output: DecoderOutput, group: QueryGroup, targets: Targets, pairs: Pairs) -> dict[str, Tensor]:
        """The weighted losses of one group.

        Returns:
            ``loss_{class,box,giou}[_group][_layer]``: scalars to sum; no layer suffix on the last layer, no group
            suffix on the detector's own group.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            layers = slice(None) if self.deep_supervision else slice(-1, None)
            pairs = pairs.slice_layers(layers)
            num_objects = _mean_over_ranks(sum(targets.counts), output.logits.device)
            logits = output.logits[layers].float()
            losses = {"class": self._class_loss(logits, targets, pairs, num_objects, group.padding)}
            losses["box"], losses["giou"] = _box_losses(output.boxes[layers].float(), targets, pairs, num_objects)
        suffix = "" if group.name == "own" else f"_{group.name}"
        named = {}
        for name, per_layer in losses.items():
            values = (self.weights[name] * group.loss_weight * per_layer).unbind()
            last = len(values) - 1
            for layer, value in enumerate(values):
                named[f"loss_{name}{suffix}" + ("" if layer == last else f"_{layer}")] = value
        return named

    def _class_loss(
        self, logits: Tensor, targets: Targets, pairs: Pairs, num_objects: Tensor | float, padding: Tensor | None
    ) -> Tensor:
        labels = self._target_labels(logits, targets, pairs)
        exists = 1.0 if padding is None else (~padding).float()
        if self.classification == "softmax":
            losses = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
            weights = self.class_weights[labels] * exists  # type: ignore[index]
            return (losses * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=torch.finfo(losses.dtype).tiny)
        # Not F.one_hot, which reads the device to check its range.
        one_hot = (labels.unsqueeze(-1) == torch.arange(self.num_classes, device=labels.device)).to(logits.dtype)
        losses = sigmoid_focal_loss(logits, one_hot, self.focal_alpha, self.focal_gamma).sum(-1) * exists
        return losses.sum((1, 2)) / num_objects

    def _target_labels(self, logits: Tensor, targets: Targets, pairs: Pairs) -> Tensor:
        """(L, B, Q): the class of each query's object, K for none."""
        layers, images, queries, _ = logits.shape
        labels = targets.labels.unsqueeze(0).expand(layers, -1, -1).gather(2, pairs.target)
        # Padded pairs write to an extra last query that is dropped, so that they overwrite nothing.
        query = torch.where(pairs.weight > 0, pairs.query, queries)
        result = torch.full((layers, images, queries + 1), self.num_classes, device=logits.device)
        return result.scatter_(2, query, labels)[:, :, :-1]


def _box_losses(
    pred_boxes: Tensor, targets: Targets, pairs: Pairs, num_objects: Tensor | float
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU losses of the matched pairs, (L,) each."""
    pred = pairs.take_query(pred_boxes)
    gt = pairs.take_target(targets.boxes.unsqueeze(0).expand(len(pred), -1, -1, -1))
    distance = (pred - gt).abs().sum(-1)
    giou = 1 - generalized_iou(pred, gt)
    return tuple((values * pairs.weight).sum((1, 2)) / num_objects for values in (distance, giou))  # type: ignore[return-value]


def _mean_over_ranks(count: int, device: torch.device) -> Tensor | float:
    """Objects a rank, at least 1; a tensor only where ranks must agree."""
    if comm.get_world_size() == 1:
        return float(max(count, 1))
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
