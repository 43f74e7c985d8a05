"""Taking one network's queries to another network, whatever their widths and kinds.

Letters: B images, Q queries, Ct and Cs widths of the content, Pt and Ps of the position, teacher's and student's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...detr.queries.base import PLACE_WIDTHS, Queries, QueryForm

START_SIZE = -2.0  # logit of the width and height of a box that was a point


def content_map(teacher: Queries | QueryForm, student: Queries | QueryForm) -> nn.Module:
    """From the teacher's content (B, Q, Ct) to the student's (B, Q, Cs) [R].

    Content that is zero tells the queries apart no more than any other constant, so it becomes what the student is
    used to: zero, or a learned vector where the student has learned content. Other content goes in as it is, or by a
    learned linear map where widths differ.

    Args:
        teacher, student: their queries.
    """
    old, new = teacher.widths[0], student.widths[0]
    if teacher.content_kind == "zero":
        return CommonContent(new, learned=student.content_kind == "learned")
    return _linear(old, new, bias=False)


def position_map(teacher: Queries | QueryForm, student: Queries | QueryForm) -> nn.Module:
    """From the teacher's positions (B, Q, Pt) to the student's (B, Q, Ps) [R].

    Positions of one kind go in as they are, as in D3ETR (2211.09768) [P], or by a learned linear map where widths
    differ; points and boxes are turned into each other. Any other two kinds are joined by a learned linear map, of
    the logits where it starts at points or boxes: it is learned faster than one of their sine embedding.

    Args:
        teacher, student: their queries.
    """
    old, new = teacher.widths[1], student.widths[1]
    kind, wanted = teacher.position_kind, student.position_kind
    if kind == wanted:
        return _linear(old, new, bias=True)
    if kind in PLACE_WIDTHS and wanted in PLACE_WIDTHS:
        return PlaceMap(PLACE_WIDTHS[wanted])
    return nn.Linear(old, new)


class CommonContent(nn.Module):
    """The same content for every query: zero, or a vector that is learned and starts at zero.

    Args:
        width: Cs.
    """

    def __init__(self, width: int, learned: bool):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width)) if learned else None
        self.width = width

    def forward(self, content: Tensor) -> Tensor:
        """(B, Q, Ct), of which the shape counts, to (B, Q, Cs)."""
        zero = content.new_zeros(*content.shape[:2], self.width)
        return zero if self.vector is None else zero + self.vector


class PlaceMap(nn.Module):
    """Boxes to their centres, or points to boxes around them, all of one learned size.

    Args:
        numbers: 4 to make boxes, 2 to make points.
    """

    def __init__(self, numbers: int):
        super().__init__()
        self.size = nn.Parameter(torch.full((2,), START_SIZE)) if numbers == 4 else None

    def forward(self, position: Tensor) -> Tensor:
        """Logits (B, Q, 4) to (B, Q, 2), or the reverse."""
        if self.size is None:
            return position[..., :2]
        return torch.cat([position, self.size.expand_as(position)], dim=-1)


def _linear(old: int, new: int, bias: bool) -> nn.Module:
    return nn.Identity() if old == new else nn.Linear(old, new, bias=bias)
