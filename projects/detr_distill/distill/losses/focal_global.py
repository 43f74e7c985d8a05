"""FGD: objects and background apart, where and in which channels the teacher looks, and the relation of all cells.

Letters: B images, C channels of the teacher, N objects.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, POSITIVE
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import GroundTruth
from ...structures.regions import BoxRegions
from ..students.base import StudentOutput, StudentStep
from .map_loss import LevelLoss
from .map_pairs import map_size


@LOSS_REGISTRY.register()
class FocalGlobalLoss(LevelLoss):
    """``weight * sum over levels of (w_o object + w_b background + w_a attention + w_r relation)``.

    Source: FGD (2111.11837) [P]. With the teacher's attention over space S and over channels K, see
    :func:`find_attention`, and everything divided by B:

    - object: ``sum M S K (teacher - student)^2``, M the inverse area of the smallest object on the cell, else 0;
    - background: the same with M 1 over the number of the image's cells without any object, 0 on objects;
    - attention: ``sum |S_t - S_s| + sum |K_t - K_s|``;
    - relation: ``sum (R_t(teacher) - R_s(student))^2``, R a :class:`ContextBlock` a side and level, both learned [C].

    Weights, in this order: 1e-3, 5e-4, 1e-3, 5e-6 for one stage; 5e-5, 2.5e-5, 5e-5, 5e-7 for two [C]; a term of weight
    0 is left out. The temperature is that of both attentions [P].
    """

    needs_labels = True

    weight: float = key(1.0, "FGD, of all four terms; 0 builds nothing", NOT_NEGATIVE)
    object_weight: float = key(
        1e-3,
        "of the error on objects; these four for detectors of one stage, a twentieth for two (relation: a tenth)",
        NOT_NEGATIVE,
    )
    background_weight: float = key(5e-4, "of the error on all other cells", NOT_NEGATIVE)
    attention_weight: float = key(1e-3, "of the difference of the attentions", NOT_NEGATIVE)
    relation_weight: float = key(5e-6, "of the maps behind the context blocks; 0 builds none", NOT_NEGATIVE)
    temperature: float = key(0.5, "of the attention over space and over channels", POSITIVE)

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.weights = {
            "object": self.object_weight,
            "background": self.background_weight,
            "attention": self.attention_weight,
            "relation": self.relation_weight,
        }
        if not any(self.weights.values()):
            raise ConfigError(
                "MODEL.DISTILL.FOCAL_GLOBAL_LOSS: all four weights are 0. Give one above 0, or WEIGHT 0 for no loss."
            )
        related = self.pairs if self.relation_weight else ()
        self.relation_teacher = nn.ModuleList(ContextBlock(pair.teacher_channels) for pair in related)
        self.relation_student = nn.ModuleList(ContextBlock(pair.teacher_channels) for pair in related)

    def level_terms(
        self, index: int, student_map: Tensor, teacher_map: Tensor, student: StudentOutput
    ) -> dict[str, Tensor]:
        """Those of ``object``, ``background``, ``attention`` and ``relation`` whose weight is not 0."""
        with torch.autocast(student_map.device.type, enabled=False):
            student_map = student_map.float()
            space, channels = find_attention(teacher_map, self.temperature)
            terms = {}
            if self.object_weight or self.background_weight:
                inside, outside = _masks(student_map, student.step)
                error = space * ((teacher_map - student_map).square() * channels[:, :, None, None]).sum(1)
                terms["object"], terms["background"] = (inside * error).sum(), (outside * error).sum()
            if self.attention_weight:
                student_space, student_channels = find_attention(student_map, self.temperature)
                terms["attention"] = (space - student_space).abs().sum() + (channels - student_channels).abs().sum()
            if self.relation_weight:
                teacher_relation, student_relation = self.relation_teacher[index], self.relation_student[index]
                terms["relation"] = (teacher_relation(teacher_map) - student_relation(student_map)).square().sum()
        weighted = {term: (self.weights[term], value) for term, value in terms.items()}
        return {term: weight * value / len(student_map) for term, (weight, value) in weighted.items() if weight}


def _masks(student_map: Tensor, step: StudentStep | None) -> tuple[Tensor, Tensor]:
    """(B, height, width) weights of the cells of objects, and of all others."""
    assert step is not None and step.ground_truth is not None
    inside = inverse_areas(step.ground_truth, step.image_size, map_size(student_map))
    free = (inside == 0).float()
    return inside, free / free.sum((1, 2), keepdim=True).clamp(min=1)


def find_attention(values: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a map is strong: (B, height, width) and (B, C), both 1 on average [P].

    Softmax of the mean absolute value over channels, or over cells, divided by the temperature; times the number of
    cells, or channels.

    Args:
        values: (B, C, height, width).
    """
    size = values.abs()
    space = (size.mean(1).flatten(1) / temperature).softmax(-1)
    channels = (size.mean((2, 3)) / temperature).softmax(-1)
    space, channels = space * space.shape[-1], channels * channels.shape[-1]
    return space.unflatten(-1, values.shape[-2:]), channels


def inverse_areas(ground_truth: GroundTruth, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, height, width): 1 over the cells of the smallest object there, 0 where there is none [P].

    An object owns every cell from the one that its upper left corner lies in up to the index that its lower right
    corner is rounded up to, so at least one [C]; cells beyond the map are not counted [R].

    Args:
        image_size, size: (height, width), of the padded batch in pixels and of the map in cells.
    """
    truth = ground_truth.at_least_one()
    (image_height, image_width), (height, width) = image_size, size
    left, top, right, bottom = truth.corners_on_device.unbind(-1)
    start = (left * (width / image_width)).floor(), (top * (height / image_height)).floor()
    end = (right * (width / image_width)).ceil(), (bottom * (height / image_height)).ceil()
    regions = BoxRegions(torch.stack([*start, *end], dim=-1), truth.valid, size, size)
    areas = regions.rows.sum(1) * regions.columns.sum(1)
    covered = regions.rows.unsqueeze(2) * regions.columns.unsqueeze(1)  # (B, height, width, N)
    return (covered / areas.clamp(min=1)[:, None, None]).amax(-1)


class ContextBlock(nn.Module):
    """A map plus what a small network makes of its attended mean: the relation of each cell to all (GCNet, 1904.11492).

    One 1x1 convolution weighs the cells (softmax over space); the mean passes C -> C / 2, layer normalisation, ReLU,
    C / 2 -> C, which starts at zero, and is added to every cell [C].
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 2)
        self.weigh = nn.Conv2d(channels, 1, 1)
        first, last = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.transform = nn.Sequential(first, nn.LayerNorm(inner), nn.ReLU(inplace=True), last)
        nn.init.kaiming_normal_(self.weigh.weight)
        assert self.weigh.bias is not None
        for values in (self.weigh.bias, last.weight, last.bias):
            nn.init.zeros_(values)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, height, width) to the same."""
        share = F.softmax(self.weigh(values).flatten(2), dim=-1)
        context = (values.flatten(2) @ share.transpose(1, 2)).squeeze(-1)
        return values + self.transform(context)[:, :, None, None]
