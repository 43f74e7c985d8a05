"""FGD: objects and background apart, where and in which channels the teacher looks, and the relation of all cells.

Letters: B images, C channels of the teacher, N objects.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures.regions import BoxRegions
from ..students.base import StudentOutput
from .map_loss import LevelLoss
from .map_pairs import FeaturePair, find_pairs, read_boxes

TERMS = ("object", "background", "attention", "relation")


@LOSS_REGISTRY.register()
class FocalGlobalLoss(LevelLoss):
    """``weight * sum over levels of (w_o object + w_b background + w_a attention + w_r relation)``.

    Source: FGD (2111.11837) [P]. With the teacher's attention over space S and over channels K, see
    :func:`find_attention`, and everything divided by B:

    - object: ``sum M S K (teacher - student)^2``, M the inverse area of the smallest object on the cell, else 0;
    - background: the same with M 1 over the number of the image's cells without any object, 0 on objects;
    - attention: ``sum |S_t - S_s| + sum |K_t - K_s|``;
    - relation: ``sum (R_t(teacher) - R_s(student))^2``, R a :class:`ContextBlock` a side and level, both learned [C].

    Args:
        weight: of all four. pairs: the maps. weights: of :data:`TERMS`, in order; a term of weight 0 is left out. One
            stage: 1e-3, 5e-4, 1e-3, 5e-6; two stages: 5e-5, 2.5e-5, 5e-5, 5e-7 [C].
        temperature: of both attentions, 0.5 [P].
    """

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        pairs: list[FeaturePair],
        weights: tuple[float, float, float, float] = (1e-3, 5e-4, 1e-3, 5e-6),
        temperature: float = 0.5,
    ):
        super().__init__(key="FOCAL_GLOBAL_LOSS", weight=weight, pairs=pairs)
        self.weights = dict(zip(TERMS, weights, strict=True))
        if not any(self.weights.values()):
            raise ConfigError(
                "MODEL.DISTILL.FOCAL_GLOBAL_LOSS: all four weights are 0. Give one above 0, or WEIGHT 0 for no loss."
            )
        self.temperature = temperature
        related = pairs if self.weights["relation"] else []
        self.relation_teacher = nn.ModuleList(ContextBlock(pair.teacher_channels) for pair in related)
        self.relation_student = nn.ModuleList(ContextBlock(pair.teacher_channels) for pair in related)

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.FOCAL_GLOBAL_LOSS
        return {
            "weight": node.WEIGHT,
            "pairs": find_pairs(node, "FOCAL_GLOBAL_LOSS", student, teacher),
            "weights": tuple(node[f"{term.upper()}_WEIGHT"] for term in TERMS),
            "temperature": node.TEMPERATURE,
        }

    def level_terms(self, index: int, own: Tensor, target: Tensor, student: StudentOutput) -> dict[str, Tensor]:
        """Those of ``object``, ``background``, ``attention`` and ``relation`` whose weight is not 0."""
        with torch.autocast(own.device.type, enabled=False):
            own = own.float()
            space, channels = find_attention(target, self.temperature)
            terms = {}
            if self.weights["object"] or self.weights["background"]:
                inside, outside = self._masks(own, student)
                error = space * ((target - own).square() * channels[:, :, None, None]).sum(1)
                terms["object"], terms["background"] = (inside * error).sum(), (outside * error).sum()
            if self.weights["attention"]:
                own_space, own_channels = find_attention(own, self.temperature)
                terms["attention"] = (space - own_space).abs().sum() + (channels - own_channels).abs().sum()
            if self.weights["relation"]:
                difference = self.relation_teacher[index](target) - self.relation_student[index](own)
                terms["relation"] = difference.square().sum()
        return {term: self.weights[term] * value / len(own) for term, value in terms.items() if self.weights[term]}

    def _masks(self, own: Tensor, student: StudentOutput) -> tuple[Tensor, Tensor]:
        """(B, height, width) weights of the cells of objects, and of all others."""
        assert student.step is not None
        boxes, valid = read_boxes(student, own.device)
        inside = inverse_areas(boxes, valid, student.step.image_size, (own.shape[-2], own.shape[-1]))
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


def inverse_areas(boxes: Tensor, valid: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, height, width): 1 over the cells of the smallest object there, 0 where there is none [P].

    An object owns every cell from the one that its upper left corner lies in up to the index that its lower right
    corner is rounded up to, so at least one [C]; cells beyond the map are not counted [R].

    Args:
        boxes: (B, N, 4) corners in pixels. valid: (B, N). image_size, size: (height, width), of the padded batch in
            pixels and of the map in cells.
    """
    (image_height, image_width), (height, width) = image_size, size
    left, top, right, bottom = boxes.unbind(-1)
    start = (left * (width / image_width)).floor(), (top * (height / image_height)).floor()
    end = (right * (width / image_width)).ceil(), (bottom * (height / image_height)).ceil()
    regions = BoxRegions(torch.stack([*start, *end], dim=-1), valid, size, size)
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
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(inplace=True), nn.Linear(inner, channels)
        )
        nn.init.kaiming_normal_(self.weigh.weight)
        for values in (self.weigh.bias, self.transform[-1].weight, self.transform[-1].bias):
            nn.init.zeros_(values)  # type: ignore[arg-type]

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, height, width) to the same."""
        share = F.softmax(self.weigh(values).flatten(2), dim=-1)
        context = (values.flatten(2) @ share.transpose(1, 2)).squeeze(-1)
        return values + self.transform(context)[:, :, None, None]
