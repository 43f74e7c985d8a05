"""What FeatureLoss is composed of: a normalisation of maps, a divergence of two maps, and a mean over the levels.

Letters: B images, C channels, P levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...distributed import root_of_mean
from .. import divergence

NORM_EPSILON = 1e-5
ROOT_EPSILON = 1e-8  # keeps the root's gradient finite where the maps agree

# A map's sum of values and their number.
Level = tuple[Tensor, "Tensor | float"]


def group_norm(values: Tensor) -> Tensor:
    """Group normalisation of a map with one group, without parameters."""
    return F.group_norm(values, 1)


def batch_norm(values: Tensor) -> Tensor:
    """Each channel over the batch and all cells; not F.batch_norm, which refuses a single map of one cell."""
    return torch.batch_norm(values, None, None, None, None, True, 0.0, NORM_EPSILON, False)


def instance_norm(values: Tensor) -> Tensor:
    """A group of each channel; not F.instance_norm or F.group_norm, which refuse maps of one cell."""
    return torch.group_norm(values, values.shape[1])


def spatial_attention(values: Tensor) -> Tensor:
    """Where a map (B, C, height, width) is strong: (B, 1, height, width) of length 1 over its cells.

    The mean of the squares over channels, divided by its Euclidean norm; source: AT (1612.03928) with p = 2 [P].
    """
    strength = values.square().mean(1, keepdim=True)
    return F.normalize(strength.flatten(1), dim=1).view_as(strength)


def unchanged(values: Tensor) -> Tensor:
    """The map itself."""
    return values


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": unchanged,
    "instance": instance_norm,
    "group": group_norm,
    "batch": batch_norm,
    "attention": spatial_attention,
}


@dataclass(frozen=True)
class MapDivergence:
    """Compares two maps cell by cell, or channel by channel.

    Attributes:
        kind: "mse", "cosine", or of distributions "kl", "js" or "js_distance". axis: that a softmax makes the
            distributions of: 1, the channels of each cell, or 2, the cells of each channel. temperature: of that.
    """

    kind: str
    axis: int
    temperature: float

    def __call__(self, teacher_map: Tensor, student_map: Tensor) -> Tensor:
        """Maps (B, C, height, width) to (B, height, width) or (B, cells), or (B, C) of distributions over space."""
        if self.kind == "mse":
            return F.mse_loss(student_map, teacher_map, reduction="none").mean(1)
        if self.kind == "cosine":
            return 1 - F.cosine_similarity(teacher_map, student_map, dim=1)
        teacher, student = (x.flatten(2).movedim(self.axis, -1) for x in (teacher_map, student_map))
        compare = divergence.softmax_kl if self.kind == "kl" else divergence.jensen_shannon
        values = compare(teacher, student, self.temperature)
        return values / student.shape[-1] if self.kind == "js_distance" else values


@dataclass(frozen=True)
class LevelMean:
    """The mean over the levels' values.

    Attributes:
        mean: "cells", over the cells of all levels; "levels", over the levels' own means; "sum", these added up.
        weights: of the levels, for "levels". root: takes the root of a mean.
    """

    mean: str
    weights: tuple[float, ...]
    root: bool

    def __call__(self, levels: list[Level]) -> Tensor:
        if self.mean == "cells":
            totals, counts = zip(*levels, strict=True)
            return self._root(torch.stack(totals).sum() / sum(counts))
        weighted = [w * self._root(total / n) for w, (total, n) in zip(self.weights, levels, strict=True)]
        return torch.stack(weighted).sum() / (1.0 if self.mean == "sum" else sum(self.weights))

    def _root(self, value: Tensor) -> Tensor:
        return root_of_mean(value, ROOT_EPSILON) if self.root else value


def masked_sum(values: Tensor, chosen: Tensor) -> Level:
    """Sum and number, at least 1, of the values where ``chosen`` is 1."""
    return (values * chosen).sum(), chosen.sum().clamp(min=1)
