"""Distillation of feature maps: the adapted student's against the teacher's, by any divergence.

Letters: B images, C channels, P levels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, ODD, POSITIVE, Range, Words
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures.regions import BoxRegions
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput, StudentStep
from .feature_parts import NORMS, Level, LevelMean, MapDivergence, masked_sum
from .map_loss import MapLoss, convolutions
from .map_pairs import MapPair, map_size, read_teacher_map

AXES = {"channels": 1, "space": 2}
DISTRIBUTIONS = ("js", "js_distance", "kl")


@LOSS_REGISTRY.register()
class FeatureLoss(MapLoss):
    """``weight * D(norm(teacher), norm(adapter(student)))``, the teacher detached; one adapter serves all levels.

    LGD (2109.11496): mse of instance-normalised maps, one mean over the cells of all levels [C]. SSSD (2303.05015):
    js_distance of maps as distributions, mean over levels [P]; a map becomes a distribution by a softmax over channels
    at each cell, and its terms are averaged over cells and channels before the root [R]. LabelEnc (2007.03282): mse
    with a group norm [C]. FitNet, AT, DeFeat, CWD and PKD as keys: docs/methods.md, "Feature baselines".

    Norm, divergence and mean are the parts of feature_parts.py that the settings of these names choose.
    """

    weight: float = key(1.0, "of the loss on feature maps", NOT_NEGATIVE)
    divergence: str = key(
        "mse",
        '`"mse"`, `"js"`, `"js_distance"`, `"kl"` or `"cosine"`',
        Words("mse", "js", "js_distance", "kl", "cosine"),
        earlier="kind",
    )
    softmax: str = key(
        "channels",
        'what `js`, `js_distance` and `kl` make a distribution of: the channels at each position, or `"space"`, the '
        "positions of each channel",
        Words(*AXES),
    )
    temperature: float = key(1.0, "of that softmax", POSITIVE)
    norm: str = key(
        "instance",
        'of both maps, without parameters; `"group"` (one group), `"batch"` (each channel over the batch and all '
        'positions), `"attention"` (one channel: where the map is strong) or `"none"`',
        Words(*NORMS),
    )
    adapter_layers: int = key(3, "convolutions on the student's maps, 0 to 3", Range(0, most=3))
    adapter_kernel: int = key(3, "their size, in cells", ODD)
    mean: str = key(
        "cells",
        'over the cells of all levels; `"levels"`: over the levels\' own means; `"sum"`: these added up',
        Words("cells", "levels", "sum"),
    )
    level_weights: tuple[float, ...] = key((), 'one a level, with `MEAN` `"levels"`; empty: equal', NOT_NEGATIVE)
    foreground: bool = key(False, "cells inside objects alone")
    background_weight: float = key(
        0.0, "with `FOREGROUND`, weight of the mean over all other cells, which is added", NOT_NEGATIVE
    )

    @configurable
    def __init__(self, *, pairs: tuple[MapPair, ...], **settings: Any):
        super().__init__(pairs=pairs, **settings)
        channels, teacher_channels = _widths(pairs, self.adapter_layers)
        self._check_together(channels, teacher_channels)
        self.needs_labels = self.foreground
        self._normalise = NORMS[self.norm]
        self._compare = MapDivergence(self.divergence, AXES[self.softmax], self.temperature)
        weights = self.level_weights or (1.0,) * len(pairs)
        self._average = LevelMean(self.mean, weights, root=self.divergence == "js_distance")
        self.adapter = convolutions(channels, teacher_channels, self.adapter_layers, self.adapter_kernel)

    def _check_together(self, channels: int, teacher_channels: int) -> None:
        """Raises ConfigError where two settings contradict each other."""
        weights = self.level_weights
        over_space = self.softmax == "space" and self.divergence in DISTRIBUTIONS
        unequal = channels != teacher_channels and self.norm != "attention"
        refusals = (
            (
                weights and (self.mean != "levels" or len(weights) != len(self.pairs)),
                f"LEVEL_WEIGHTS is {list(weights)}; it takes MEAN 'levels' and one weight for each of "
                f"{[pair.name for pair in self.pairs]}.",
            ),
            (weights and not any(weights), "LEVEL_WEIGHTS are all 0. Give one above 0, or WEIGHT 0."),
            (
                self.foreground and over_space,
                "FOREGROUND is True with SOFTMAX 'space', which compares channels and no positions. Set SOFTMAX "
                "'channels' or FOREGROUND False.",
            ),
            (
                self.background_weight and not self.foreground,
                f"BACKGROUND_WEIGHT is {self.background_weight} with FOREGROUND {self.foreground}. Give 0, or set "
                "FOREGROUND True.",
            ),
            (
                self.norm == "attention" and self.divergence != "mse",
                f"NORM is 'attention' with DIVERGENCE '{self.divergence}'; an attention map is one channel without a "
                "distribution. Set DIVERGENCE 'mse'.",
            ),
            (
                not self.adapter_layers and unequal,
                f"ADAPTER_LAYERS is 0; the student's maps have {channels} channels and the teacher's "
                f"{teacher_channels}. Give 1 to 3 layers.",
            ),
        )
        for refused, reason in refusals:
            if refused:
                raise ConfigError(f"{self.node}.{reason}")

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_feature``."""
        inside: list[Level] = []
        outside: list[Level] = []
        for pair in self.pairs:
            student_map = self.adapter(student.maps[pair.name])
            teacher_map = read_teacher_map(knowledge, pair.teacher_name, map_size(student_map))
            with torch.autocast(student_map.device.type, enabled=False):
                values = self._compare(self._normalise(teacher_map), self._normalise(student_map.float()))
                if self.foreground:
                    covered = _covered(student.step, map_size(student_map)).view_as(values)
                    inside.append(masked_sum(values, covered))
                    outside.append(masked_sum(values, 1 - covered))
                else:
                    inside.append((values.sum(), float(values.numel())))
        loss = self._average(inside)
        if self.background_weight:
            loss = loss + self.background_weight * self._average(outside)
        return {"loss_distill_feature": self.weight * loss}


def _widths(pairs: tuple[MapPair, ...], adapter_layers: int) -> tuple[int, int]:
    """Channels of the student's and the teacher's maps, the same in all pairs where an adapter serves them.

    Raises:
        ConfigError: they differ from pair to pair.
    """
    widths = sorted({(pair.channels, pair.teacher_channels) for pair in pairs})
    if len(widths) > 1 and adapter_layers:
        raise ConfigError(
            f"MODEL.DISTILL.FEATURE_LOSS.IN_FEATURES {[pair.name for pair in pairs]} have (student, teacher) channels "
            f"{widths}; one adapter serves maps of one width. Name maps of equal width."
        )
    return next((pair for pair in widths if pair[0] != pair[1]), widths[0])


def _covered(step: StudentStep | None, size: tuple[int, int]) -> Tensor:
    """(B, height, width): 1 on the cells of objects, else 0."""
    assert step is not None and step.ground_truth is not None
    truth = step.ground_truth.at_least_one()
    return BoxRegions(truth.corners_on_device, truth.valid, step.image_size, size).covered()
