"""What all teachers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...config.keys import key
from ...plugin import Plugin
from ...registry import TEACHER_REGISTRY
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..side import Side
from ..students.base import Student, StudentStep

SECTION = "MODEL.DISTILL.TEACHER"
WEIGHTS = key(
    "",
    "its checkpoint: a file or an address; required. `LabelMapEncoder`: the checkpoint of the first training, in the "
    "second",
    path=f"{SECTION}.WEIGHTS",
)
CLASS_NAMES = key(
    (), "the teacher's classes in order; empty: the names of its own training set", path=f"{SECTION}.CLASS_NAMES"
)


@TEACHER_REGISTRY.interface
class Teacher(Side, Plugin):
    """Turns a step into :class:`Knowledge`; built beside the student.

    What it can give stands in the attributes of :class:`Side`; matchers and losses ask for that.

    Attributes:
        classes: how its class list relates to the student's; None for a teacher without predictions.
        detector: the network that it asks; None for one that asks none.
        flip_channels: that network expects the other channel order (RGB for BGR) than the student.
        needs_labels: it is made from them, so that images without labels cannot be asked about.
        given_channels: channels of the maps in ``Knowledge.features``, by name.
    """

    section = "MODEL.DISTILL"
    classes: ClassMap | None = None
    flip_channels: bool = False
    needs_labels: bool = False
    given_channels: Mapping[str, int] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        return cls.read_keys(cfg)

    @property
    def detector(self) -> nn.Module | None:
        return None

    @property
    def feature_channels(self) -> Mapping[str, int]:
        return self.given_channels

    @abstractmethod
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at a training step.

        Args:
            step: of the student, with the ground truth. capture: what to keep beside, see structures/.
        """
