"""Objects on the levels of a label encoder: boxes or masks, read from and written to.

Letters: B images, N objects, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ....structures.regions import BoxRegions
from .descriptor import Labels


class MaskRegions:
    """Instance masks on one level, nearest pixel [C]."""

    def __init__(self, masks: Tensor, size: tuple[int, int]):
        self.size = size
        self.cells = F.interpolate(masks.float(), size=size).flatten(2)

    def read(self, values: Tensor) -> Tensor:
        cells = self.cells.to(values.dtype)
        return cells @ values.flatten(2).transpose(1, 2) / cells.sum(-1, keepdim=True).clamp(min=1)

    def write(self, values: Tensor) -> Tensor:
        return (values.transpose(1, 2) @ self.cells.to(values.dtype)).unflatten(-1, self.size)


def write_through(values: Tensor, regions: list[BoxRegions | MaskRegions], convolution: nn.Conv2d) -> list[Tensor]:
    """``convolution(region.write(values))`` of each level, for an odd kernel that keeps the size.

    It is not run over the maps of boxes: the kernel is applied to the N objects instead of to every cell, which costs
    N * kernel / (C * kernel^2) of the convolution.

    Args:
        values: (levels, B, N, C). regions: of each level.
    """
    boxes = [region for region in regions if isinstance(region, BoxRegions)]
    if len(boxes) < len(regions):
        return [convolution(region.write(objects)) for objects, region in zip(values, regions, strict=True)]
    kernel = convolution.kernel_size[0]
    taps = convolution.weight.permute(2, 3, 0, 1).flatten(0, 2)
    answers = F.linear(values, taps).unflatten(-1, (kernel, kernel, -1))  # of all levels at once
    maps = [region.write_answers(answer) for answer, region in zip(answers, boxes, strict=True)]
    return maps if convolution.bias is None else [level + convolution.bias[:, None, None] for level in maps]


def find_regions(labels: Labels, image_size: tuple[int, int], size: tuple[int, int]) -> BoxRegions | MaskRegions:
    """The objects' cells on a level of ``size`` (height, width)."""
    if labels.masks is not None:
        return MaskRegions(labels.masks, size)
    return BoxRegions(labels.boxes, labels.valid, image_size, size)
