"""What all teachers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...config.keys import key
from ...config.ranges import AnyText
from ...plugin import Plugin
from ...registry import LOSS_REGISTRY, TEACHER_REGISTRY
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
    (),
    "the teacher's classes in order, each once (`N/A`: an index without a class), paired with the student's by name; "
    "empty: the names of its training set, which its own `DATASETS.REGISTER` may define",
    AnyText(),
    path=f"{SECTION}.CLASS_NAMES",
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

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        """Raises ConfigError where a file that the teacher will need is missing or cannot be read; builds nothing."""

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


def labels_images(cfg: CfgNode) -> bool:
    """Whether the teacher's detections are labels of images without any, ``MODEL.DISTILL.PSEUDO_LABELS``."""
    return cfg.MODEL.DISTILL.PSEUDO_LABELS.IMAGES != "none"


def compares_classes(cfg: CfgNode) -> bool:
    """Whether what a configuration learns from the teacher needs its classes paired with the student's.

    A loss that compares queries or reads their assignment does, and the teacher's detections as labels do.
    """
    names = [LOSS_REGISTRY.current_name(name, warn=False) for name in cfg.MODEL.DISTILL.LOSSES]
    found = [LOSS_REGISTRY.get(name) for name in names if name in LOSS_REGISTRY]
    return labels_images(cfg) or any(loss.needs_pairs or loss.needs_assignment for loss in found)
