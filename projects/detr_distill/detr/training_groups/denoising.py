"""Denoising queries of the training step: disturbed objects that the decoder has to reconstruct.

They know their object, so nothing has to be matched. They look at the detector's own queries, which do not look at
them: what the detector gives is the same with and without them.

Letters: B images, G objects (padded, at least one), M objects of all groups, Q queries, C width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import TRAINING_GROUP_REGISTRY
from ...structures import GroundTruth, Memory, Pairs, QueryGroup
from ..boxes import DINO_EPSILON, inverse_sigmoid
from .noise import draw_labels, move_corners, shift_boxes

NAME = "denoising"


@TRAINING_GROUP_REGISTRY.register()
class DenoisingQueries(nn.Module):
    """DN-DETR (2203.01305): every object, disturbed, in several groups that do not see each other [P].

    A query's position is the box with noise, its content the embedding of a class, which is sometimes not the object's,
    and a 1 that marks it as such a query [P]. The mark of the detector's own queries is 0: theirs come from
    :class:`UnknownLabelQueries` or :class:`MarkedAnchorQueries`, or from queries without content. The loss is the
    detector's, divided by the number of objects in all groups [C].

    Args:
        num_classes: K. width: C. num_groups: how often every object stands. label_noise: probability that its class is
            drawn anew. box_noise: see :func:`shift_boxes`.

    Attributes:
        position_kind: of these queries, which has to be that of the detector's own.
    """

    position_kind = "box_logits"

    @configurable
    def __init__(self, *, num_classes: int, width: int, num_groups: int, label_noise: float, box_noise: float):
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes, width - 1)
        self.num_groups, self.label_noise, self.box_noise = num_groups, label_noise, box_noise

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR.DENOISING
        return {
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "width": cfg.MODEL.DETR.HIDDEN_DIM,
            "num_groups": node.NUM_GROUPS,
            "label_noise": node.LABEL_NOISE,
            "box_noise": node.BOX_NOISE,
        }

    def forward(self, memory: Memory, own: QueryGroup, targets: GroundTruth) -> list[QueryGroup]:
        """The group ``denoising`` for the ground truth of a step; ``memory`` is not read."""
        objects = at_least_one(targets).repeat(self.num_groups)
        boxes = shift_boxes(objects.boxes, torch.rand_like(objects.boxes), self.box_noise)
        content = self.label_embedding(draw_labels(objects.labels, self.label_noise, self.label_embedding))
        content = torch.cat([content, torch.ones_like(content[..., :1])], dim=-1)
        return [denoising_group(own, content, boxes, objects, self.num_groups)]


@TRAINING_GROUP_REGISTRY.register()
class ContrastiveDenoisingQueries(nn.Module):
    """DINO (2203.03605): beside every slightly disturbed object a strongly disturbed one, which is to be no object [P].

    There are as many groups as make ``num_pairs`` pairs in the image with the most objects, at least one [C].

    Args:
        num_classes: K. width: C. num_pairs: in all groups together. label_noise: half of it is the probability that a
            class is drawn anew [C]. box_noise: see :func:`move_corners`; the corners of positive boxes move by less
            than 1 and those of negative ones by 1 to 2 [P].

    Attributes:
        position_kind: as in :class:`DenoisingQueries`.
    """

    position_kind = "box_logits"

    @configurable
    def __init__(self, *, num_classes: int, width: int, num_pairs: int, label_noise: float, box_noise: float):
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes, width)
        self.num_pairs, self.label_noise, self.box_noise = num_pairs, label_noise, box_noise

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR.CONTRASTIVE_DENOISING
        return {
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "width": cfg.MODEL.DETR.HIDDEN_DIM,
            "num_pairs": node.NUM_PAIRS,
            "label_noise": node.LABEL_NOISE,
            "box_noise": node.BOX_NOISE,
        }

    def forward(self, memory: Memory, own: QueryGroup, targets: GroundTruth) -> list[QueryGroup]:
        """The group ``denoising`` for the ground truth of a step: positive queries, then negative ones."""
        num_groups = max(1, self.num_pairs // max(1, *targets.counts))
        objects = at_least_one(targets).repeat(num_groups)
        boxes, labels = objects.boxes.repeat(1, 2, 1), objects.labels.repeat(1, 2)
        least = (torch.arange(boxes.shape[1], device=boxes.device) >= objects.labels.shape[1]).float()
        signs = 2 * torch.randint_like(boxes, 2) - 1
        distances = signs * (least[:, None] + torch.rand_like(boxes))
        content = self.label_embedding(draw_labels(labels, self.label_noise / 2, self.label_embedding))
        return [denoising_group(own, content, move_corners(boxes, distances, self.box_noise), objects, num_groups)]


def denoising_group(
    own: QueryGroup, content: Tensor, boxes: Tensor, objects: GroundTruth, num_groups: int
) -> QueryGroup:
    """Disturbed objects as queries.

    Args:
        own: the detector's own queries. content: (B, Q, C). boxes: (B, Q, 4). The first M queries are to find
            ``objects``, one each; any further M are to find nothing.
        objects: (B, M), repeated ``num_groups`` times by :meth:`GroundTruth.repeat`.
    """
    images, count = objects.labels.shape
    repeats = content.shape[1] // count
    index = torch.arange(count, device=content.device)
    group = (index % num_groups).repeat(repeats)
    rows = index.expand(1, images, -1)
    return QueryGroup(
        name=NAME,
        content=content.to(own.content.dtype),
        position=inverse_sigmoid(boxes, DINO_EPSILON).to(own.position.dtype),
        sees=("own",),
        inner_mask=group[:, None] != group[None, :],
        targets=objects,
        pairs=Pairs(rows, rows, objects.valid[None].float(), query_in_order=repeats == 1, target_in_order=True),
        padding=~objects.valid.repeat(1, repeats),
    )


def at_least_one(targets: GroundTruth) -> GroundTruth:
    """The same objects, with a padded one where the whole batch has none: the step then has the same losses."""
    if targets.labels.shape[1]:
        return targets
    labels, valid = F.pad(targets.labels, (0, 1)), F.pad(targets.valid, (0, 1))
    return GroundTruth(labels, F.pad(targets.boxes, (0, 0, 0, 1)), valid, targets.counts)
