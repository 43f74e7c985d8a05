"""Which maps of student and teacher are compared, and reading them in one shape.

Letters: B images, C channels, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from ...detr.preprocess import labels_of
from ...errors import ConfigError
from ..knowledge import Knowledge
from ..students.base import StudentOutput, feature_channels
from ..teachers.label_encoder.descriptor import pad_boxes


@dataclass(frozen=True)
class FeaturePair:
    """A map of the student and the teacher's that it is compared with.

    Attributes:
        name, teacher_name: of the maps. channels, teacher_channels: C of each.
    """

    name: str
    teacher_name: str
    channels: int
    teacher_channels: int


def find_pairs(node: CfgNode, key: str, student: nn.Module, teacher: nn.Module) -> list[FeaturePair]:
    """The pairs that IN_FEATURES and TEACHER_FEATURES of a loss's node name; all of the teacher's maps if neither does.

    Args:
        node: the loss's configuration. key: its name, for messages.

    Raises:
        ConfigError: one side has no such map, or the two lists do not fit.
    """
    channels = feature_channels(student)
    teacher_channels: dict[str, int] = teacher.feature_channels  # type: ignore[assignment]
    names = list(node.IN_FEATURES) or list(teacher_channels)
    teacher_names = list(node.TEACHER_FEATURES) or names
    if len(names) != len(teacher_names) or (node.TEACHER_FEATURES and not node.IN_FEATURES):
        raise ConfigError(
            f"MODEL.DISTILL.{key}.TEACHER_FEATURES is {teacher_names} and IN_FEATURES {list(node.IN_FEATURES)}. Name "
            "as many maps in both, those that are compared at the same place."
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"MODEL.DISTILL.{key}.IN_FEATURES is {names}. Name each map once.")
    for side, wanted, found in (("student", names, channels), ("teacher", teacher_names, teacher_channels)):
        unknown = [name for name in wanted if name not in found]
        if unknown:
            setting = "TEACHER_FEATURES" if side == "teacher" and node.TEACHER_FEATURES else "IN_FEATURES"
            raise ConfigError(
                f"MODEL.DISTILL.{key}.{setting} names {unknown}; the {side} has {list(found)}. "
                "IN_FEATURES names the student's maps, TEACHER_FEATURES the teacher's where they have other names."
            )
    return [
        FeaturePair(own, other, channels[own], teacher_channels[other])
        for own, other in zip(names, teacher_names, strict=True)
    ]


def read_target(knowledge: Knowledge, name: str, size: tuple[int, int]) -> Tensor:
    """The teacher's map (B, C, height, width), float32, without gradient, resized to ``size`` (height, width)."""
    target = knowledge.features[name].detach().float()
    if target.shape[-2:] != size:
        target = F.interpolate(target, size, mode="bilinear", align_corners=False)
    return target


def read_boxes(student: StudentOutput, device: torch.device) -> tuple[Tensor, Tensor]:
    """The batch's objects: (B, N, 4) corners in pixels and (B, N) bool, False on padding."""
    assert student.step is not None
    return pad_boxes(labels_of(student.step.batched_inputs), device)


def convolutions(channels: int, out_channels: int, layers: int, kernel: int = 3) -> nn.Sequential:
    """Convolutions that keep the size, with ReLU between them; the first changes the width."""
    parts: list[nn.Module] = []
    for index in range(layers):
        if index:
            parts.append(nn.ReLU(inplace=True))
        width = out_channels if index else channels
        parts.append(nn.Conv2d(width, out_channels, kernel, padding=kernel // 2))
    return nn.Sequential(*parts)
