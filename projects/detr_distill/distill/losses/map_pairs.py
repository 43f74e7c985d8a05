"""Which maps of student and teacher are compared, and reading them in one shape.

Letters: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from ...moved import renamed
from ..knowledge import Knowledge
from ..side import Side

__getattr__ = renamed(__name__, {"FeaturePair": "MapPair"})


@dataclass(frozen=True)
class MapPair:
    """A map of the student and the teacher's that it is compared with.

    Attributes:
        name, teacher_name: of the maps. channels, teacher_channels: C of each.
    """

    name: str
    teacher_name: str
    channels: int
    teacher_channels: int


def find_pairs(
    in_features: Sequence[str], teacher_features: Sequence[str], node: str, student: Side, teacher: Side
) -> tuple[MapPair, ...]:
    """The pairs of maps that a loss compares.

    Args:
        in_features: names of the student's maps; empty: those that the teacher's head reads. teacher_features: of the
            teacher's, in order; empty: the same names. node: the loss's configuration, for messages.

    Raises:
        ConfigError: one side has no such map, or the two lists do not fit.
    """
    names = list(in_features) or list(teacher.feature_channels)
    teacher_names = list(teacher_features) or names
    if len(names) != len(teacher_names) or (teacher_features and not in_features):
        raise ConfigError(
            f"{node}.TEACHER_FEATURES is {teacher_names} and IN_FEATURES {list(in_features)}. Name as many maps in "
            "both, those that are compared at the same position."
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"{node}.IN_FEATURES is {names}. Name each map once.")
    _check_known(names, student.map_channels, f"{node}.IN_FEATURES", "student")
    setting = "TEACHER_FEATURES" if teacher_features else "IN_FEATURES"
    _check_known(teacher_names, teacher.map_channels, f"{node}.{setting}", "teacher")
    return tuple(
        MapPair(name, other, student.map_channels[name], teacher.map_channels[other])
        for name, other in zip(names, teacher_names, strict=True)
    )


def _check_known(names: list[str], channels: Mapping[str, int], setting: str, side: str) -> None:
    unknown = [name for name in names if name not in channels]
    if unknown:
        raise ConfigError(
            f"{setting} names {unknown}; the {side} has {list(channels)}. IN_FEATURES names the student's maps, "
            "TEACHER_FEATURES the teacher's where they have other names."
        )


def read_teacher_map(knowledge: Knowledge, name: str, size: tuple[int, int]) -> Tensor:
    """The teacher's map (B, C, height, width), float32, without gradient, resized to ``size`` (height, width)."""
    teacher_map = knowledge.maps[name].detach().float()
    if teacher_map.shape[-2:] != size:
        teacher_map = F.interpolate(teacher_map, size, mode="bilinear", align_corners=False)
    return teacher_map


def map_size(values: Tensor) -> tuple[int, int]:
    """(height, width) of a map (..., height, width)."""
    return values.shape[-2], values.shape[-1]
