"""Which cells of a feature map belong to which box: reading from them and writing to them.

Letters: B images, N objects, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class BoxRegions:
    """Boxes on one level: a cell belongs to a box when its index lies between the box's scaled edges [C].

    A box that is smaller than a cell may own none. Boxes are products of an interval of rows and one of columns, so no
    map of N x height x width is made.
    """

    def __init__(self, boxes: Tensor, valid: Tensor, image_size: tuple[int, int], size: tuple[int, int]):
        left, top, right, bottom = boxes.unsqueeze(1).unbind(-1)
        (height, width), (image_height, image_width) = size, image_size
        rows = torch.arange(height, device=boxes.device)[:, None] * (image_height / height)
        columns = torch.arange(width, device=boxes.device)[:, None] * (image_width / width)
        # (B, height or width, N)
        self.rows = ((rows >= top) & (rows <= bottom) & valid.unsqueeze(1)).float()
        self.columns = ((columns >= left) & (columns <= right)).float()

    def read(self, values: Tensor) -> Tensor:
        """Mean of (B, C, height, width) over each object's cells: (B, N, C), zero where it has none."""
        sums = (values.flatten(1, 2) @ self.columns.to(values.dtype)).unflatten(1, values.shape[1:3])
        sums = (sums * self.rows.to(values.dtype).unsqueeze(1)).sum(2)
        cells = self.rows.sum(1) * self.columns.sum(1)
        return (sums / cells.clamp(min=1).unsqueeze(1).to(values.dtype)).transpose(1, 2)

    def write(self, values: Tensor) -> Tensor:
        """Each object's (B, N, C) on its cells, sums where objects overlap: (B, C, height, width)."""
        spread = values.transpose(1, 2).unsqueeze(2) * self.rows.to(values.dtype).unsqueeze(1)
        columns = self.columns.to(values.dtype).transpose(1, 2)
        return (spread.flatten(1, 2) @ columns).unflatten(1, spread.shape[1:3])

    def write_answers(self, answers: Tensor) -> Tensor:
        """Each object's answers to the taps of a kernel (B, N, vertical, horizontal, C) to (B, C, height, width).

        A convolution of products of intervals is a sum of products of shifted intervals.
        """
        rows, columns = (
            _shifts(interval, answers.shape[2]).to(answers.dtype) for interval in (self.rows, self.columns)
        )
        spread = torch.einsum("bnyxc,byhn->bchnx", answers, rows).flatten(3)
        columns = columns.permute(0, 3, 1, 2).flatten(1, 2)
        return (spread.flatten(1, 2) @ columns).unflatten(1, spread.shape[1:3])

    def covered(self) -> Tensor:
        """(B, height, width): 1 on cells of any box, else 0."""
        return (self.rows @ self.columns.transpose(1, 2)).clamp(max=1)


def _shifts(interval: Tensor, kernel: int) -> Tensor:
    """(B, size, N) to (B, kernel, size, N): what each tap of a kernel sees of it, zero beyond the border."""
    size, border = interval.shape[1], kernel // 2
    padded = F.pad(interval, (0, 0, border, border))
    return torch.stack([padded[:, tap : tap + size] for tap in range(kernel)], dim=1)
