"""Terms of the detection loss: boxes, and class losses that ask for a score as high as the predicted box is good.

Letters: L layers, B images, Q queries, K classes, M pairs (padded).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...structures import GroundTruth, Pairs
from ..boxes import as_compared, generalized_iou, intersection_over_union


def matched_iou(boxes: Tensor, targets: GroundTruth, pairs: Pairs) -> Tensor:
    """(L, B, Q): the IoU of each query's box with its object, without gradient; 0 for a query without one.

    Args:
        boxes: (L, B, Q, 4).
    """
    goal = pairs.take_target(targets.boxes.unsqueeze(0).expand(len(boxes), -1, -1, -1))
    return pairs.to_queries(intersection_over_union(pairs.take_query(boxes), goal), boxes.shape[2])


def quality_loss(logits: Tensor, one_hot: Tensor, iou: Tensor, kind: str, alpha: float, gamma: float) -> Tensor:
    """The binary cross-entropy with the IoU as the goal of the object's class, summed over classes.

    ``"varifocal"`` (2008.13367), as RT-DETR (2304.08069) has it: the object's class weighs its IoU, any other
    ``alpha * score ** gamma`` [C]. ``"matchability"``, of DEIM (2412.04234): the goal is ``IoU ** gamma`` and weighs 1,
    any other class as before; DEIM has ``alpha`` 1 and ``gamma`` 1.5 [C].

    Args:
        logits: (L, B, Q, K). one_hot: (L, B, Q, K), 1 at the class of a query's object. iou: (L, B, Q).

    Returns:
        (L, B, Q).
    """
    goal = iou.unsqueeze(-1) * one_hot
    found = goal if kind == "varifocal" else one_hot
    if kind == "matchability":
        goal = goal.pow(gamma)
    weight = alpha * logits.detach().sigmoid().pow(gamma) * (1 - one_hot) + found
    return F.binary_cross_entropy_with_logits(logits, goal, weight=weight, reduction="none").sum(-1)


def soft_focal_loss(logits: Tensor, goal: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss with goals between 0 and 1, summed over classes; equal to it where they are 0 or 1.

    ``|score - goal| ** gamma`` scales the cross-entropy: the quality focal loss (2006.04388) [P]; its weight goes from
    ``1 - alpha`` at goal 0 to ``alpha`` at goal 1 in a line [R], which that paper leaves out.

    Args:
        logits: (L, B, Q, K). goal: (L, B, Q, K).

    Returns:
        (L, B, Q).
    """
    weight = (alpha * goal + (1 - alpha) * (1 - goal)) * (logits.sigmoid() - goal).abs().pow(gamma)
    return (weight * F.binary_cross_entropy_with_logits(logits, goal, reduction="none")).sum(-1)


def box_losses(
    pred_boxes: Tensor, targets: GroundTruth, pairs: Pairs, counts: list[int], form: str
) -> tuple[list[Tensor], ...]:
    """L1 and GIoU losses of the matched pairs, (L,) for each group; ``counts`` are their pairs, one after the other.

    Args:
        pred_boxes: (L, B, Q, 4). form: as in :func:`as_compared`.
    """
    pred = pairs.take_query(pred_boxes)
    gt = pairs.take_target(targets.boxes.unsqueeze(0).expand(len(pred), -1, -1, -1))
    distance = (as_compared(pred, form) - as_compared(gt, form)).abs().sum(-1)
    giou = 1 - generalized_iou(pred, gt)
    return tuple(
        [total / targets.num_objects for total in sum_parts(values * pairs.weight, counts)]
        for values in (distance, giou)
    )


def sum_parts(values: Tensor, sizes: list[int]) -> list[Tensor]:
    """(L, B, N) to the sum (L,) of each group's part; added up in the order in which a group alone would be."""
    return [part.contiguous().sum((1, 2)) for part in values.split(sizes, dim=2)]
