"""The detection loss of DETR-type detectors, on all decoder layers at once.

Letters: L layers, B images, Q queries, G objects (padded), M pairs (padded), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE
from ...plugin import Plugin
from ...structures import DecoderOutput, GroundTruth, Pairs, QueryGroup
from ..boxes import as_compared, generalized_iou
from ..keys import CLASSIFICATION, FOCAL_ALPHA, FOCAL_GAMMA, L1_BOXES, NUM_CLASSES
from .assignment import Cost
from .matcher import HungarianMatcher
from .matchings import Matching, Matchings


@dataclass
class Supervised:
    """A query group's output that is compared with objects.

    Attributes:
        output: of the group. targets: the objects. matching: the handle of its matching, where pairs are not known.
    """

    output: DecoderOutput
    group: QueryGroup
    targets: GroundTruth
    matching: Matching | None = None

    @property
    def pairs(self) -> Pairs:
        """Queries and their objects; of a matching once the ledger is solved."""
        if self.matching is not None:
            return self.matching.pairs
        assert self.group.pairs is not None
        return self.group.pairs.expand_layers(self.output.num_layers)


class SetCriterion(Plugin, node="MODEL.DETR.LOSS"):
    """Hungarian matching loss with deep supervision, for one or more query groups.

    ``class_weight * class + l1_weight * L1 + giou_weight * (1 - GIoU)``, the last two over matched pairs, all divided
    by the number of objects (mean over the ranks, at least 1). Softmax: cross-entropy with weight
    ``no_object_weight`` on unmatched queries (2005.12872) [P]. Focal: sigmoid focal loss over all queries and classes
    (2108.06152) [P]. A group's padding has no loss.

    Args:
        matcher: gives the cost.
    """

    class_weights: Tensor

    num_classes: int = NUM_CLASSES
    classification: str = CLASSIFICATION
    class_weight: float = key(1.0, "weight of the class loss", NOT_NEGATIVE, earlier="weight_class")
    l1_weight: float = key(5.0, "weight of the L1 loss", NOT_NEGATIVE, earlier="weight_l1")
    giou_weight: float = key(2.0, "weight of the generalised-IoU loss", NOT_NEGATIVE, earlier="weight_giou")
    no_object_weight: float = key(0.1, "softmax: weight of queries without an object", NOT_NEGATIVE)
    focal_alpha: float = FOCAL_ALPHA
    focal_gamma: float = FOCAL_GAMMA
    l1_boxes: str = L1_BOXES
    deep_supervision: bool = key(True, "a detection loss on every decoder layer instead of the last alone")

    @configurable
    def __init__(self, *, matcher: HungarianMatcher, **settings: Any):
        super().__init__(**settings)
        self.matcher = matcher
        class_weights = torch.ones(self.num_classes + 1)
        class_weights[-1] = self.no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**cls.read_keys(cfg), "matcher": HungarianMatcher(cfg)}

    def match(self, output: DecoderOutput, group: QueryGroup, targets: GroundTruth, matchings: Matchings) -> Supervised:
        """A group's output with the objects that it is compared with; what is to be matched goes to the ledger."""
        known = group.pairs is not None
        return Supervised(output, group, targets, None if known else matchings.add(self.cost(output, group, targets)))

    def cost(self, output: DecoderOutput, group: QueryGroup, targets: GroundTruth) -> Cost:
        """The group's matching cost, with the layers replaced on which an assignment is forced."""
        values = self.matcher(output, targets)
        for layer, forced in group.forced_cost.items():
            values[layer] = forced
        return Cost(f"ground truth, group '{group.name}'", values, targets.counts, targets.device_counts)

    def forward(
        self, output: DecoderOutput, group: QueryGroup, targets: GroundTruth, pairs: Pairs
    ) -> dict[str, Tensor]:
        """The weighted losses of one group.

        Returns:
            ``loss_{class,box,giou}[_group][_layer]``: scalars to sum; no layer suffix on the last layer, no group
            suffix on the detector's own group.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            layers = slice(None) if self.deep_supervision else slice(-1, None)
            pairs = pairs.slice_layers(layers)
            num_objects = targets.num_objects
            logits = output.logits[layers].float()
            losses = {"class": self._class_loss(logits, targets, pairs, num_objects, group.padding)}
            boxes = output.boxes[layers].float()
            losses["box"], losses["giou"] = _box_losses(boxes, targets, pairs, num_objects, self.l1_boxes)
        weights = {"class": self.class_weight, "box": self.l1_weight, "giou": self.giou_weight}
        suffix = "" if group.name == "own" else f"_{group.name}"
        named = {}
        for name, per_layer in losses.items():
            values = (weights[name] * group.loss_weight * per_layer).unbind()
            last = len(values) - 1
            for layer, value in enumerate(values):
                named[f"loss_{name}{suffix}" + ("" if layer == last else f"_{layer}")] = value
        return named

    def _class_loss(
        self, logits: Tensor, targets: GroundTruth, pairs: Pairs, num_objects: Tensor, padding: Tensor | None
    ) -> Tensor:
        labels = self._target_labels(logits, targets, pairs)
        exists: Tensor | float = 1.0 if padding is None else (~padding).float()
        if targets.image_weight is not None:  # nobody has said that there is nothing in an image without labels
            exists = exists * targets.image_weight.unsqueeze(-1)
        if self.classification == "softmax":
            losses = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
            weights = self.class_weights[labels] * exists
            return (losses * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=torch.finfo(losses.dtype).tiny)
        # Not F.one_hot, which reads the device to check its range.
        one_hot = (labels.unsqueeze(-1) == torch.arange(self.num_classes, device=labels.device)).to(logits.dtype)
        losses = sigmoid_focal_loss(logits, one_hot, self.focal_alpha, self.focal_gamma).sum(-1) * exists
        return losses.sum((1, 2)) / num_objects

    def _target_labels(self, logits: Tensor, targets: GroundTruth, pairs: Pairs) -> Tensor:
        """(L, B, Q): the class of each query's object, K for none."""
        layers, images, queries, _ = logits.shape
        labels = targets.labels.unsqueeze(0).expand(layers, -1, -1).gather(2, pairs.target)
        # Padded pairs write to an extra last query that is dropped, so that they overwrite nothing.
        query = torch.where(pairs.weight > 0, pairs.query, queries)
        result = torch.full((layers, images, queries + 1), self.num_classes, device=logits.device)
        return result.scatter_(2, query, labels)[:, :, :-1]


def _box_losses(
    pred_boxes: Tensor, targets: GroundTruth, pairs: Pairs, num_objects: Tensor, form: str
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU losses of the matched pairs, (L,) each; ``form`` as in :func:`as_compared`."""
    pred = pairs.take_query(pred_boxes)
    gt = pairs.take_target(targets.boxes.unsqueeze(0).expand(len(pred), -1, -1, -1))
    distance = (as_compared(pred, form) - as_compared(gt, form)).abs().sum(-1)
    giou = 1 - generalized_iou(pred, gt)
    distance, giou = ((values * pairs.weight).sum((1, 2)) / num_objects for values in (distance, giou))
    return distance, giou
