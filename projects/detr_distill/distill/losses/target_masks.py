"""Where the teacher's queries look: the masks of target-aware distillation, and how much each of them counts.

Letters: B images, M pairs (padded), C width of the teacher, S memory tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...detr.boxes import intersection_over_union
from ...distributed import shared_divisor
from ...structures import DecoderOutput, GroundTruth, Memory, Pairs
from ...structures.levels import axis_positions


@torch.no_grad()
def query_quality(output: DecoderOutput, ground_truth: GroundTruth, pairs: Pairs, exponent: float) -> Tensor:
    """``c^g IoU^(1 - g)`` of every matched query with its object.

    Args:
        output: of the teacher. ground_truth: labels in the teacher's classes; one below 0 has class score 0.
        pairs: of the last layer alone. exponent: g.

    Returns:
        (B, M) in [0, 1], float32; 0 for padding.
    """
    labels = pairs.take_target(ground_truth.labels[None, :, :, None])
    scores = pairs.take_query(output.probabilities()[-1:]).gather(-1, labels.clamp(min=0)) * (labels >= 0)
    boxes, gt_boxes = pairs.take_query(output.boxes[-1:].float()), pairs.take_target(ground_truth.boxes[None].float())
    overlap = intersection_over_union(boxes, gt_boxes)
    return (scores[..., 0] ** exponent * overlap ** (1 - exponent) * pairs.weight)[0]


@torch.no_grad()
def cell_weights(quality: Tensor, mask_logits: Tensor, padding: Tensor | None) -> Tensor:
    """``sum_i q_i m_is^2`` without gradient.

    Args:
        quality: (B, M). mask_logits: (B, M, S). padding: (B, S) bool, where the sum is 0, or None.

    Returns:
        (B, S).
    """
    weights = (quality.unsqueeze(1) @ mask_logits.sigmoid().square()).squeeze(1)
    return weights if padding is None else weights.masked_fill(padding, 0)


def mask_loss(logits: Tensor, boxes: Tensor, quality: Tensor, memory: Memory) -> Tensor:
    """Binary cross-entropy of the masks with the cells that each query's object touches [R].

    Args:
        logits: (B, M, S). boxes: (B, M, 4) of the objects. quality: (B, M), weights the queries.

    Returns:
        Mean over cells and weighted queries; 0 where there is none.
    """
    values = F.binary_cross_entropy_with_logits(logits, touched_cells(memory, boxes), reduction="none")
    if memory.mask is None:
        per_query = values.mean(-1)
    else:
        visible = (~memory.mask).unsqueeze(1)
        per_query = (values * visible).sum(-1) / visible.sum(-1)
    return (per_query * quality).sum() / shared_divisor(quality.sum())


def touched_cells(memory: Memory, boxes: Tensor) -> Tensor:
    """(B, M, S) float: 1 for the cells of all levels that overlap a box (B, M, 4)."""
    inside = []
    for x, y in axis_positions(memory):
        # The first centre lies half a cell from the border.
        columns, rows = (
            (centres[:, None] - boxes[..., axis, None]).abs() < boxes[..., 2 + axis, None] / 2 + centres[:, None, :1]
            for axis, centres in enumerate((x, y))
        )
        inside.append((rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(-2))
    return torch.cat(inside, dim=-1).float()
