"""Denoising queries of the training step: disturbed objects that the decoder has to reconstruct.

They know their object, so nothing has to be matched. They look at the detector's own queries, which do not look at
them: what the detector gives is the same with and without them.

Letters: B images, G objects (padded, at least one), M objects of all groups, Q queries, C width, K classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import COUNT, NOT_NEGATIVE, SHARE, Range
from ...registry import TRAINING_GROUP_REGISTRY
from ...structures import GroundTruth, Memory, Pairs, QueryGroup
from ..boxes import DAB_EPSILON, inverse_sigmoid
from ..keys import HIDDEN_DIM, LOGIT_EPSILON, NUM_CLASSES
from .base import TrainingGroup
from .noise import draw_labels, move_corners, shift_boxes

NAME = "denoising"


class LabelledQueries(TrainingGroup):
    """Queries at disturbed objects, with the embedding of a class as content.

    Attributes:
        num_classes: K. width: C. label_noise, box_noise: see the subclasses.
        logit_epsilon: how far from 0 and 1 boxes stay before their logit is taken; 0: 1e-3 [C]. mark: entries of the
            content beside the embedding.
    """

    position_kind = "box_logits"
    mark: ClassVar[int] = 0
    label_noise: float
    box_noise: float

    num_classes: int = NUM_CLASSES
    width: int = HIDDEN_DIM
    logit_epsilon: float = LOGIT_EPSILON

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.label_embedding = nn.Embedding(self.num_classes, self.width - self.mark)

    def to_logits(self, boxes: Tensor) -> Tensor:
        """Positions (B, Q, 4) of boxes (B, Q, 4)."""
        return inverse_sigmoid(boxes, self.logit_epsilon or DAB_EPSILON)


@TRAINING_GROUP_REGISTRY.register()
class DenoisingQueries(LabelledQueries, node="MODEL.DETR.DENOISING"):
    """DN-DETR (2203.01305): every object, disturbed, in several groups that do not see each other [P].

    A query's position is the box with noise, its content the embedding of a class, which is sometimes not the object's,
    and a 1 that marks it as such a query [P]. The mark of the detector's own queries is 0: theirs come from
    :class:`UnknownLabelQueries` or :class:`MarkedAnchorQueries`, or from queries without content. The loss is the
    detector's, divided by the number of objects in all groups [C].

    Attributes:
        num_groups: how often every object stands. label_noise: probability that its class is drawn anew.
        box_noise: see :func:`shift_boxes`.
    """

    mark = 1

    num_groups: int = key(5, "`DenoisingQueries`: how often every object is disturbed and reconstructed", COUNT)
    label_noise: float = key(0.2, "probability that an object's class is drawn anew", SHARE)
    box_noise: float = key(
        0.4,
        "most that a box's centre moves, in parts of its half size, and that its size changes, in parts of it",
        NOT_NEGATIVE,
    )

    def forward(self, memory: Memory, own: QueryGroup, ground_truth: GroundTruth) -> list[QueryGroup]:
        """The group ``denoising``; ``memory`` is not read."""
        objects = ground_truth.at_least_one().repeat(self.num_groups)
        boxes = shift_boxes(objects.boxes, torch.rand_like(objects.boxes), self.box_noise)
        content = self.label_embedding(draw_labels(objects.labels, self.label_noise, self.num_classes))
        content = torch.cat([content, torch.ones_like(content[..., :1])], dim=-1)
        return [denoising_group(own, content, self.to_logits(boxes), objects, self.num_groups)]


@TRAINING_GROUP_REGISTRY.register()
class ContrastiveDenoisingQueries(LabelledQueries, node="MODEL.DETR.CONTRASTIVE_DENOISING"):
    """DINO (2203.03605): beside every slightly disturbed object a strongly disturbed one, which is to be no object [P].

    There are as many groups as make ``num_pairs`` pairs in the image with the most objects, at least one [C].

    Attributes:
        num_pairs: in all groups together. label_noise: half of it is the probability that a class is drawn anew [C].
        box_noise: see :func:`move_corners`; the corners of positive boxes move by less than 1 and those of negative
            ones by 1 to 2 [P].
    """

    num_pairs: int = key(
        100,
        "`ContrastiveDenoisingQueries`: pairs of a positive and a negative query in all groups together; divided by "
        "the most objects of an image it gives the number of groups, at least 1",
        COUNT,
    )
    label_noise: float = key(
        0.5, "half of it is the probability that an object's class is drawn anew", Range(0, most=2)
    )
    box_noise: float = key(
        1.0,
        "most that the corners of a positive box move, in parts of its half size; those of a negative box move once to "
        "twice as far",
        NOT_NEGATIVE,
    )

    def forward(self, memory: Memory, own: QueryGroup, ground_truth: GroundTruth) -> list[QueryGroup]:
        """The group ``denoising``, positive queries, then negative ones; ``memory`` is not read."""
        num_groups = max(1, self.num_pairs // max(1, *ground_truth.counts))
        objects = ground_truth.at_least_one().repeat(num_groups)
        boxes, labels = objects.boxes.repeat(1, 2, 1), objects.labels.repeat(1, 2)
        least = (torch.arange(boxes.shape[1], device=boxes.device) >= objects.labels.shape[1]).float()
        signs = 2 * torch.randint_like(boxes, 2) - 1
        distances = signs * (least[:, None] + torch.rand_like(boxes))
        content = self.label_embedding(draw_labels(labels, self.label_noise / 2, self.num_classes))
        position = self.to_logits(move_corners(boxes, distances, self.box_noise))
        return [denoising_group(own, content, position, objects, num_groups)]


def denoising_group(
    own: QueryGroup, content: Tensor, position: Tensor, objects: GroundTruth, num_groups: int
) -> QueryGroup:
    """Disturbed objects as queries.

    Args:
        own: the detector's own queries. content: (B, Q, C). position: (B, Q, 4). The first M queries are to find
            ``objects``, one each; any extra M are to find nothing.
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
        position=position.to(own.position.dtype),
        sees=("own",),
        inner_mask=group[:, None] != group[None, :],
        targets=objects,
        pairs=Pairs(rows, rows, objects.valid[None].float(), query_in_order=repeats == 1, target_in_order=True),
        padding=~objects.valid.repeat(1, repeats),
    )
