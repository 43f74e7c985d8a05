"""What all training groups share: query groups of the training step beside the detector's own, gone at inference."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ...plugin import Plugin
from ...registry import TRAINING_GROUP_REGISTRY
from ...structures import GroundTruth, Memory, QueryGroup


@TRAINING_GROUP_REGISTRY.interface
class TrainingGroup(Plugin):
    """Makes query groups of a training step.

    Attributes:
        position_kind: of these queries, where the detector's own have to be of the same; None: any, they follow it.
    """

    section = "MODEL.DETR"
    position_kind: ClassVar[str | None] = None

    @abstractmethod
    def forward(self, memory: Memory, own: QueryGroup, ground_truth: GroundTruth) -> list[QueryGroup]:
        """Groups for the images of ``memory``; one called ``own`` takes the place of the detector's own."""
