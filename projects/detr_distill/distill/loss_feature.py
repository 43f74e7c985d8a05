"""Distillation of feature maps: the adapted student's against the teacher's, by any divergence.

Letters: B images, C channels, P levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import LOSS_REGISTRY
from ..structures import Knowledge, Match
from . import divergence
from .label_descriptor import pad_boxes
from .label_regions import BoxRegions
from .loss_base import DistillLoss
from .students import StudentOutput, feature_channels

NORMS = ("none", "instance", "group")
AXES = {"channels": 1, "space": 2}
DIVERGENCES = ("mse", "js", "js_distance", "kl", "cosine")
ROOT_EPSILON = 1e-8  # keeps the root's gradient finite where the maps agree


@LOSS_REGISTRY.register()
class FeatureLoss(DistillLoss):
    """``weight * D(norm(teacher), norm(adapter(student)))``, the teacher detached; one adapter serves all levels.

    LGD (2109.11496): mse of instance-normalised maps, one mean over the cells of all levels [C]. SSSD (2303.05015):
    js_distance of maps as distributions, mean over levels [P]; a map becomes a distribution by a softmax over channels
    at each place, and its terms are averaged over places and channels before the root [R]. LabelEnc (2007.03282): mse
    with a group norm [C].

    Args:
        in_features: names of the student's maps, each compared with the teacher's of the same name. channels: C of the
            student. teacher_channels: C of the teacher. kind: "mse", "js", "js_distance", "kl" or "cosine".
        softmax: axis that js, js_distance and kl make a distribution of, "channels" or "space".
        temperature: of that softmax. norm: "none", "instance" or "group" (one group), without parameters.
        adapter_layers: convolutions on the student's map, 0 to 3, with ReLU between. adapter_kernel: their size.
        mean: "cells": over the cells of all levels; "levels": over the levels' own means.
        level_weights: one a level, for ``mean`` "levels"; empty: equal. foreground: cells inside objects alone.
    """

    needs_pairs = False

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        in_features: list[str],
        channels: int,
        teacher_channels: int,
        kind: str = "mse",
        softmax: str = "channels",
        temperature: float = 1.0,
        norm: str = "instance",
        adapter_layers: int = 3,
        adapter_kernel: int = 3,
        mean: str = "cells",
        level_weights: tuple[float, ...] = (),
        foreground: bool = False,
    ):
        super().__init__(key="FEATURE_LOSS", weight=weight, groups=[], layers="all")
        for key, value, known in (
            ("DIVERGENCE", kind, DIVERGENCES),
            ("SOFTMAX", softmax, tuple(AXES)),
            ("NORM", norm, NORMS),
            ("MEAN", mean, ("cells", "levels")),
            ("ADAPTER_LAYERS", adapter_layers, (0, 1, 2, 3)),
        ):
            if value not in known:
                raise ConfigError(f"MODEL.DISTILL.FEATURE_LOSS.{key} is {value!r}. Known: {known}.")
        if level_weights and (mean != "levels" or len(level_weights) != len(in_features)):
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.LEVEL_WEIGHTS is {list(level_weights)}; it takes MEAN 'levels' and one "
                f"weight for each of {in_features}."
            )
        if foreground and softmax == "space" and kind in ("js", "js_distance", "kl"):
            raise ConfigError(
                "MODEL.DISTILL.FEATURE_LOSS.FOREGROUND is True with SOFTMAX 'space', which compares channels and no "
                "places. Set SOFTMAX 'channels' or FOREGROUND False."
            )
        if not adapter_layers and channels != teacher_channels:
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.ADAPTER_LAYERS is 0; the student's maps have {channels} channels and the "
                f"teacher's {teacher_channels}. Give 1 to 3 layers."
            )
        self.in_features, self.kind, self.axis, self.temperature = in_features, kind, AXES[softmax], temperature
        self.norm, self.mean, self.foreground = norm, mean, foreground
        self.level_weights = tuple(level_weights) or (1.0,) * len(in_features)
        self.adapter = _adapter(channels, teacher_channels, adapter_layers, adapter_kernel)

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.FEATURE_LOSS
        channels, teacher_channels = feature_channels(student), teacher.feature_channels
        in_features = list(node.IN_FEATURES) or list(teacher_channels)
        for side, found in (("student", channels), ("teacher", teacher_channels)):
            unknown = [name for name in in_features if name not in found]
            if unknown:
                raise ConfigError(
                    f"MODEL.DISTILL.FEATURE_LOSS.IN_FEATURES names {unknown}; the {side} has {list(found)}."
                )
        widths = {(channels[name], teacher_channels[name]) for name in in_features}
        if len(widths) > 1:
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.IN_FEATURES {in_features} have (student, teacher) channels "
                f"{sorted(widths)}; one adapter serves maps of one width. Name maps of equal width."
            )
        own, other = widths.pop()
        return {
            "weight": node.WEIGHT,
            "in_features": in_features,
            "channels": own,
            "teacher_channels": other,
            "kind": node.DIVERGENCE,
            "softmax": node.SOFTMAX,
            "temperature": node.TEMPERATURE,
            "norm": node.NORM,
            "adapter_layers": node.ADAPTER_LAYERS,
            "adapter_kernel": node.ADAPTER_KERNEL,
            "mean": node.MEAN,
            "level_weights": tuple(node.LEVEL_WEIGHTS),
            "foreground": node.FOREGROUND,
        }

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_feature``."""
        levels = []
        for name in self.in_features:
            target, own = knowledge.features[name].detach(), self.adapter(student.features[name])
            if target.shape[-2:] != own.shape[-2:]:
                target = F.interpolate(target.float(), own.shape[-2:], mode="bilinear", align_corners=False)
            with torch.autocast(own.device.type, enabled=False):
                levels.append(self._compare(self._normalise(target.float()), self._normalise(own.float()), student))
        return {"loss_distill_feature": self.weight * self._average(levels)}

    def _normalise(self, values: Tensor) -> Tensor:
        if self.norm == "none":
            return values
        if self.norm == "group":
            return F.group_norm(values, 1)
        # Instance norm is a group of each channel; not F.instance_norm or F.group_norm, which refuse maps of one cell.
        return torch.group_norm(values, values.shape[1])

    def _compare(self, target: Tensor, own: Tensor, student: StudentOutput) -> tuple[Tensor, Tensor | float]:
        """Sum and number of what is compared on a level: places, or channels with a softmax over space."""
        size = (own.shape[-2], own.shape[-1])
        if self.kind == "mse":
            values = F.mse_loss(own, target, reduction="none").mean(1)
        elif self.kind == "cosine":
            values = 1 - F.cosine_similarity(target, own, dim=1)
        else:
            target, own = (x.flatten(2).movedim(self.axis, -1) for x in (target, own))
            divide = divergence.softmax_kl if self.kind == "kl" else divergence.jensen_shannon
            values = divide(target, own, self.temperature)
            if self.kind == "js_distance":
                values = values / own.shape[-1]
        if not self.foreground:
            return values.sum(), float(values.numel())
        covered = _covered_cells(student, size, own.device)
        return (values * covered.view_as(values)).sum(), covered.sum().clamp(min=1)

    def _average(self, levels: list[tuple[Tensor, Tensor | float]]) -> Tensor:
        if self.mean == "cells":
            totals, counts = zip(*levels, strict=True)
            return self._root(torch.stack(totals).sum() / sum(counts))
        weighted = [w * self._root(total / n) for w, (total, n) in zip(self.level_weights, levels, strict=True)]
        return torch.stack(weighted).sum() / sum(self.level_weights)

    def _root(self, value: Tensor) -> Tensor:
        return (value + ROOT_EPSILON).sqrt() if self.kind == "js_distance" else value


def _adapter(channels: int, teacher_channels: int, layers: int, kernel: int) -> nn.Sequential:
    """Convolutions with ReLU between them; the first changes the width."""
    parts: list[nn.Module] = []
    for index in range(layers):
        if index:
            parts.append(nn.ReLU(inplace=True))
        width = teacher_channels if index else channels
        parts.append(nn.Conv2d(width, teacher_channels, kernel, padding=kernel // 2))
    return nn.Sequential(*parts)


def _covered_cells(student: StudentOutput, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, height, width): 1 on the cells of any object."""
    assert student.step is not None
    boxes, valid = pad_boxes([entry["instances"] for entry in student.step.batched_inputs], device)
    return BoxRegions(boxes, valid, student.step.image_size, size).covered()
