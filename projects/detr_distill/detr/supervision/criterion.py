"""The detection loss of DETR-type detectors, on all decoder layers at once.

Letters: L layers, B images, Q queries, G objects (padded), M pairs (padded), K classes.
"""

from __future__ import annotations

import dataclasses
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
from ...structures import DecoderOutput, GroundTruth, Pairs, QueryGroup, join_pairs
from ..keys import CLASSIFICATION, FOCAL_ALPHA, FOCAL_GAMMA, L1_BOXES, NUM_CLASSES, QUALITY_LOSSES
from .assignment import Cost
from .matcher import HungarianMatcher
from .matchings import Matching, Matchings
from .terms import box_losses, matched_iou, quality_loss, soft_focal_loss, sum_parts


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
    (2108.06152) [P]. Varifocal, matchability: see terms.py. A group's padding has no loss.

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
    quality_alpha: float = key(
        0.75, "varifocal and matchability: weight of the classes that a query's object is not of", NOT_NEGATIVE
    )
    quality_gamma: float = key(
        2.0,
        "varifocal and matchability: power of the score in that weight; matchability: of the IoU in the goal too",
        NOT_NEGATIVE,
    )
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

    def match(self, entries: list[Supervised], matchings: Matchings) -> list[Supervised]:
        """The entries with the handles of their matchings; what is to be matched goes to the ledger."""
        open_entries = [entry for entry in entries if entry.group.pairs is None]
        handles = {}
        for bundle in _bundles(open_entries):
            for entry, values in zip(bundle, self._costs(bundle), strict=True):
                handles[id(entry)] = matchings.add(_as_cost(entry, values))
        return [dataclasses.replace(entry, matching=handles.get(id(entry))) for entry in entries]

    def cost(self, output: DecoderOutput, group: QueryGroup, targets: GroundTruth) -> Cost:
        """A group's matching cost, with the layers replaced on which an assignment is forced."""
        entry = Supervised(output, group, targets)
        return _as_cost(entry, self._costs([entry])[0])

    def _costs(self, bundle: list[Supervised]) -> list[Tensor]:
        """The entries' costs, (L, B, Q, G) each."""
        forced = [entry.group.forced_cost for entry in bundle]
        layers = range(bundle[0].output.num_layers)
        if all(layer in costs for costs in forced for layer in layers):
            return [torch.stack([costs[layer] for layer in layers]) for costs in forced]
        together = self.matcher(_join_outputs(bundle), bundle[0].targets)
        values = list(together.split([entry.output.logits.shape[2] for entry in bundle], dim=2))
        for cost, replaced in zip(values, forced, strict=True):
            for layer, other in replaced.items():
                cost[layer] = other
        return values

    def losses(self, supervised: list[Supervised]) -> dict[str, Tensor]:
        """The weighted losses of all entries, once the ledger is solved; see :meth:`forward`."""
        losses: dict[str, Tensor] = {}
        for bundle in _bundles(supervised):
            losses.update(self._losses(bundle, [entry.pairs for entry in bundle]))
        return losses

    def forward(
        self, output: DecoderOutput, group: QueryGroup, targets: GroundTruth, pairs: Pairs
    ) -> dict[str, Tensor]:
        """The weighted losses of one group.

        Returns:
            ``loss_{class,box,giou}[_group][_layer]``: scalars to sum; no layer suffix on the last layer, no group
            suffix on the detector's own group.
        """
        return self._losses([Supervised(output, group, targets)], [pairs])

    def _losses(self, bundle: list[Supervised], pairs: list[Pairs]) -> dict[str, Tensor]:
        """The weighted losses of groups that are compared with the same objects, computed together."""
        output, targets = _join_outputs(bundle), bundle[0].targets
        logits, boxes = output.logits, output.boxes
        if not self.deep_supervision:
            logits, boxes, pairs = logits[-1:], boxes[-1:], [part.slice_layers(slice(-1, None)) for part in pairs]
        sizes = [entry.output.logits.shape[2] for entry in bundle]
        joined = join_pairs(pairs, sizes)
        if targets.weights is not None:
            joined = dataclasses.replace(joined, weight=joined.weight * targets.weights.unsqueeze(-1))
        with torch.autocast(logits.device.type, enabled=False):
            of_class = self._class_losses(
                logits.float(), boxes.float(), targets, joined, sizes, bundle[0].group.padding
            )
            counts = [part.query.shape[-1] for part in pairs]
            of_box, of_giou = box_losses(boxes.float(), targets, joined, counts, self.l1_boxes)
        named: dict[str, Tensor] = {}
        for entry, *values in zip(bundle, of_class, of_box, of_giou, strict=True):
            named.update(self._named(entry.group, *values))
        return named

    def _named(self, group: QueryGroup, of_class: Tensor, of_box: Tensor, of_giou: Tensor) -> dict[str, Tensor]:
        """A group's losses (L,) by name, layer by layer and weighted."""
        terms = {
            "class": (self.class_weight, of_class),
            "box": (self.l1_weight, of_box),
            "giou": (self.giou_weight, of_giou),
        }
        suffix, named = "" if group.name == "own" else f"_{group.name}", {}
        for name, (weight, per_layer) in terms.items():
            values = (weight * group.loss_weight * per_layer).unbind()
            for layer, value in enumerate(values):
                named[f"loss_{name}{suffix}" + ("" if layer == len(values) - 1 else f"_{layer}")] = value
        return named

    def _class_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: GroundTruth,
        pairs: Pairs,
        sizes: list[int],
        padding: Tensor | None,
    ) -> list[Tensor]:
        """(L,) for each group; ``sizes`` are their queries, one after the other."""
        labels = self._of_objects(targets.labels, logits, pairs, self.num_classes)
        scores = None if targets.scores is None else self._of_objects(targets.scores, logits, pairs, 1.0)
        exists: Tensor | float = 1.0 if padding is None else (~padding).float()
        if targets.image_weight is not None:  # nobody has said that there is nothing in an image without labels
            exists = exists * targets.image_weight.unsqueeze(-1)
        if self.classification == "softmax":
            losses = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
            if scores is not None:  # the rest of the probability is that of no object
                losses = scores * losses - (1 - scores) * logits.log_softmax(-1)[..., -1]
            weights = self.class_weights[labels] * exists
            divisors = [total.clamp(min=torch.finfo(losses.dtype).tiny) for total in sum_parts(weights, sizes)]
            totals = sum_parts(losses * weights, sizes)
            return [total / divisor for total, divisor in zip(totals, divisors, strict=True)]
        # Not F.one_hot, which reads the device to check its range.
        one_hot = (labels.unsqueeze(-1) == torch.arange(self.num_classes, device=labels.device)).to(logits.dtype)
        if self.classification in QUALITY_LOSSES:
            iou = matched_iou(boxes, targets, pairs)
            iou = iou if scores is None else iou * scores
            losses = quality_loss(logits, one_hot, iou, self.classification, self.quality_alpha, self.quality_gamma)
        elif scores is None:
            losses = sigmoid_focal_loss(logits, one_hot, self.focal_alpha, self.focal_gamma).sum(-1)
        else:
            losses = soft_focal_loss(logits, one_hot * scores.unsqueeze(-1), self.focal_alpha, self.focal_gamma)
        losses = losses if padding is None and targets.image_weight is None else losses * exists
        return [total / targets.num_objects for total in sum_parts(losses, sizes)]

    def _of_objects(self, values: Tensor, logits: Tensor, pairs: Pairs, fill: float) -> Tensor:
        """(L, B, Q): what is known of each query's object, (B, G) in ``values``; ``fill`` for a query without one."""
        values = values.unsqueeze(0).expand(len(logits), -1, -1).gather(2, pairs.target)
        return pairs.to_queries(values, logits.shape[2], fill)


def _bundles(entries: list[Supervised]) -> list[list[Supervised]]:
    """The entries whose losses are computed together: of as many layers, with the same objects, without padding."""
    bundles: dict[tuple, list[Supervised]] = {}
    for entry in entries:
        output, padding = entry.output, entry.group.padding
        alone = None if padding is None else id(entry)
        bundles.setdefault((id(entry.targets), output.num_layers, alone), []).append(entry)
    return list(bundles.values())


def _join_outputs(bundle: list[Supervised]) -> DecoderOutput:
    """The logits and boxes of all entries, one after the other on the query axis."""
    outputs = [entry.output for entry in bundle]
    if len(outputs) == 1:
        return outputs[0]
    logits, boxes = (torch.cat(parts, dim=2) for parts in zip(*((x.logits, x.boxes) for x in outputs), strict=True))
    return dataclasses.replace(outputs[0], logits=logits, boxes=boxes)


def _as_cost(entry: Supervised, values: Tensor) -> Cost:
    targets = entry.targets
    return Cost(f"ground truth, group '{entry.group.name}'", values, targets.counts, targets.device_counts)
