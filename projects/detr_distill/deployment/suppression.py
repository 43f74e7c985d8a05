"""Non-maximum suppression in graphs, where nobody knows beforehand how many boxes are left."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def best_of_each(boxes: Tensor, scores: Tensor, group: Tensor, threshold: float, most: int | None = None) -> Tensor:
    """Indices (D,) of the boxes that no better one of the same group overlaps, best first.

    Args:
        boxes: (N, 4), x1, y1, x2, y2. scores: (N,). group: (N,) long, such as a class. threshold: of the IoU, above
            which a box is dropped. most: of them in all; None: any number.
    """
    # Apart by group: boxes of two groups never overlap.
    far = torch.cat([boxes.flatten().abs(), boxes.new_zeros(1)]).max() * 2 + 1  # of no boxes, too
    kept = nms(boxes + (group * far).unsqueeze(-1), scores, threshold)
    if most is None:
        return kept
    kept = kept[torch.arange(kept.shape[0], device=kept.device) < most]  # a slice would ask how many there are
    torch._check(kept.shape[0] <= most)  # else the exporter counts with numbers that ONNX has not
    return kept
