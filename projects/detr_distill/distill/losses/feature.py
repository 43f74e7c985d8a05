"""Distillation of feature maps: the adapted student's against the teacher's, by any divergence.

Letters: B images, C channels, P levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor

from ...config.ranges import NOT_NEGATIVE
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures.regions import BoxRegions
from .. import divergence
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import DistillLoss
from .map_pairs import convolutions, find_pairs, read_boxes, read_target

NORMS = ("none", "instance", "group", "batch", "attention")


MEANS = ("cells", "levels", "sum")


AXES = {"channels": 1, "space": 2}


DIVERGENCES = ("mse", "js", "js_distance", "kl", "cosine")


NORM_EPSILON = 1e-5


ROOT_EPSILON = 1e-8  # keeps the root's gradient finite where the maps agree


@LOSS_REGISTRY.register()
class FeatureLoss(DistillLoss):
    """``weight * D(norm(teacher), norm(adapter(student)))``, the teacher detached; one adapter serves all levels.

    LGD (2109.11496): mse of instance-normalised maps, one mean over the cells of all levels [C]. SSSD (2303.05015):
    js_distance of maps as distributions, mean over levels [P]; a map becomes a distribution by a softmax over channels
    at each place, and its terms are averaged over places and channels before the root [R]. LabelEnc (2007.03282): mse
    with a group norm [C]. FitNet, AT, DeFeat, CWD and PKD as keys: docs/methods.md, "Feature baselines".

    Args:
        in_features: names of the student's maps. teacher_features: of the teacher's, in order; empty: the same names.
        channels, teacher_channels: C of each side. kind: "mse", "js", "js_distance", "kl" or "cosine".
        softmax: axis that js, js_distance and kl make a distribution of, "channels" or "space".
        temperature: of that softmax. norm: "none", "instance" or "group" (one group), without parameters; "batch":
            each channel over the batch and all places; "attention": one channel, see :func:`spatial_attention`.
        adapter_layers: convolutions on the student's map, 0 to 3, with ReLU between. adapter_kernel: their size.
        mean: "cells": over the cells of all levels; "levels": over the levels' own means; "sum": these added up.
        level_weights: one a level, for ``mean`` "levels"; empty: equal. foreground: cells inside objects alone.
        background_weight: with ``foreground``, of the mean over all other cells, which is added.
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
        teacher_features: tuple[str, ...] = (),
        kind: str = "mse",
        softmax: str = "channels",
        temperature: float = 1.0,
        norm: str = "instance",
        adapter_layers: int = 3,
        adapter_kernel: int = 3,
        mean: str = "cells",
        level_weights: tuple[float, ...] = (),
        foreground: bool = False,
        background_weight: float = 0.0,
    ):
        super().__init__(key="FEATURE_LOSS", weight=weight, groups=[], layers="all")
        for key, value, known in (
            ("DIVERGENCE", kind, DIVERGENCES),
            ("SOFTMAX", softmax, tuple(AXES)),
            ("NORM", norm, NORMS),
            ("MEAN", mean, MEANS),
        ):
            if value not in known:
                raise ConfigError(f"MODEL.DISTILL.FEATURE_LOSS.{key} is {value!r}. Known: {known}.")
        if level_weights and (mean != "levels" or len(level_weights) != len(in_features)):
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.LEVEL_WEIGHTS is {list(level_weights)}; it takes MEAN 'levels' and one "
                f"weight for each of {in_features}."
            )
        for level_weight in level_weights:
            NOT_NEGATIVE.check("A number of MODEL.DISTILL.FEATURE_LOSS.LEVEL_WEIGHTS", level_weight)
        if level_weights and not any(level_weights):
            raise ConfigError("MODEL.DISTILL.FEATURE_LOSS.LEVEL_WEIGHTS are all 0. Give one above 0, or WEIGHT 0.")
        if foreground and softmax == "space" and kind in ("js", "js_distance", "kl"):
            raise ConfigError(
                "MODEL.DISTILL.FEATURE_LOSS.FOREGROUND is True with SOFTMAX 'space', which compares channels and no "
                "places. Set SOFTMAX 'channels' or FOREGROUND False."
            )
        if background_weight and not foreground:
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.BACKGROUND_WEIGHT is {background_weight} with FOREGROUND {foreground}. "
                "Give 0, or set FOREGROUND True."
            )
        if norm == "attention" and kind != "mse":
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.NORM is 'attention' with DIVERGENCE '{kind}'; an attention map is one "
                "channel without a distribution. Set DIVERGENCE 'mse'."
            )
        if not adapter_layers and channels != teacher_channels and norm != "attention":
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.ADAPTER_LAYERS is 0; the student's maps have {channels} channels and the "
                f"teacher's {teacher_channels}. Give 1 to 3 layers."
            )
        self.names = list(zip(in_features, teacher_features or in_features, strict=True))
        self.kind, self.axis, self.temperature, self.norm, self.mean = kind, AXES[softmax], temperature, norm, mean
        self.foreground, self.background_weight = foreground, background_weight
        self.level_weights = tuple(level_weights) or (1.0,) * len(in_features)
        self.adapter = convolutions(channels, teacher_channels, adapter_layers, adapter_kernel)

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.FEATURE_LOSS
        pairs = find_pairs(node, "FEATURE_LOSS", student, teacher)
        in_features = [pair.name for pair in pairs]
        widths = {(pair.channels, pair.teacher_channels) for pair in pairs}
        if len(widths) > 1 and node.ADAPTER_LAYERS:
            raise ConfigError(
                f"MODEL.DISTILL.FEATURE_LOSS.IN_FEATURES {in_features} have (student, teacher) channels "
                f"{sorted(widths)}; one adapter serves maps of one width. Name maps of equal width."
            )
        own, other = next((pair for pair in sorted(widths) if pair[0] != pair[1]), min(widths))
        return {
            "weight": node.WEIGHT,
            "in_features": in_features,
            "teacher_features": tuple(pair.teacher_name for pair in pairs),
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
            "background_weight": node.BACKGROUND_WEIGHT,
        }

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_feature``."""
        inside: list[tuple[Tensor, Tensor | float]] = []
        outside: list[tuple[Tensor, Tensor | float]] = []
        boxes = read_boxes(student, next(iter(student.features.values())).device) if self.foreground else None
        for name, teacher_name in self.names:
            own = self.adapter(student.features[name])
            target = read_target(knowledge, teacher_name, (own.shape[-2], own.shape[-1]))
            with torch.autocast(own.device.type, enabled=False):
                values = self._compare(self._normalise(target), self._normalise(own.float()))
                if boxes is None:
                    inside.append((values.sum(), float(values.numel())))
                    continue
                assert student.step is not None
                regions = BoxRegions(*boxes, student.step.image_size, (own.shape[-2], own.shape[-1]))
                covered = regions.covered().view_as(values)
                inside.append(_masked_sum(values, covered))
                outside.append(_masked_sum(values, 1 - covered))
        loss = self._average(inside)
        if self.background_weight:
            loss = loss + self.background_weight * self._average(outside)
        return {"loss_distill_feature": self.weight * loss}

    def _normalise(self, values: Tensor) -> Tensor:
        if self.norm == "none":
            return values
        if self.norm == "attention":
            return spatial_attention(values)
        if self.norm == "group":
            return F.group_norm(values, 1)
        if self.norm == "batch":
            # Not F.batch_norm, which refuses a single map of one cell.
            return torch.batch_norm(values, None, None, None, None, True, 0.0, NORM_EPSILON, False)
        # Instance norm is a group of each channel; not F.instance_norm or F.group_norm, which refuse maps of one cell.
        return torch.group_norm(values, values.shape[1])

    def _compare(self, target: Tensor, own: Tensor) -> Tensor:
        """What is averaged on a level: (B, height, width) or (B, places), or (B, C) with a softmax over space."""
        if self.kind == "mse":
            return F.mse_loss(own, target, reduction="none").mean(1)
        if self.kind == "cosine":
            return 1 - F.cosine_similarity(target, own, dim=1)
        target, own = (x.flatten(2).movedim(self.axis, -1) for x in (target, own))
        divide = divergence.softmax_kl if self.kind == "kl" else divergence.jensen_shannon
        values = divide(target, own, self.temperature)
        return values / own.shape[-1] if self.kind == "js_distance" else values

    def _average(self, levels: list[tuple[Tensor, Tensor | float]]) -> Tensor:
        """Of the levels' (sum, number)."""
        if self.mean == "cells":
            totals, counts = zip(*levels, strict=True)
            return self._root(torch.stack(totals).sum() / sum(counts))
        weighted = [w * self._root(total / n) for w, (total, n) in zip(self.level_weights, levels, strict=True)]
        return torch.stack(weighted).sum() / (1.0 if self.mean == "sum" else sum(self.level_weights))

    def _root(self, value: Tensor) -> Tensor:
        return (value + ROOT_EPSILON).sqrt() if self.kind == "js_distance" else value


def _masked_sum(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number, at least 1, of the values where ``chosen`` is 1."""
    return (values * chosen).sum(), chosen.sum().clamp(min=1)


def spatial_attention(values: Tensor) -> Tensor:
    """Where a map (B, C, height, width) is strong: (B, 1, height, width) of length 1 over its cells.

    The mean of the squares over channels, divided by its Euclidean norm; source: AT (1612.03928) with p = 2 [P].
    """
    strength = values.square().mean(1, keepdim=True)
    return F.normalize(strength.flatten(1), dim=1).view_as(strength)
