"""The student's own detection loss on images without labels, with the teacher's confident detections as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...detr.supervision.criterion import SetCriterion
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY, MATCHER_REGISTRY
from ...structures import QueryGroup
from ..knowledge import Knowledge
from ..match import LabelMatch, Match
from ..matchers.base import QueryMatcher
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import DistillLoss


@LOSS_REGISTRY.register()
class PseudoLabelLoss(DistillLoss):
    """Class, box and GIoU losses as on labelled images, with objects that a matcher found.

    Every query that no detection is given to learns that there is nothing. The sum is divided by the detections, in
    which each copy counts. Source: Semi-DETR (2307.08095) [P]; it weighs this loss by 4 (``UNLABELED_WEIGHT``) [P].
    """

    needs_found_labels: ClassVar[bool] = True
    unlabeled_alone: ClassVar[bool] = True

    @configurable
    def __init__(self, *, criterion: SetCriterion, **settings: Any):
        super().__init__(**settings)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        if not cfg.DATALOADER.UNLABELED_PER_BATCH:
            raise ConfigError(
                "MODEL.DISTILL.LOSSES: PseudoLabelLoss learns from images without labels, and "
                "DATALOADER.UNLABELED_PER_BATCH is 0. Give it and DATASETS.UNLABELED, or remove the loss."
            )
        assert student.criterion is not None  # its matcher has looked
        return {**settings, "criterion": student.criterion}

    def check_matchers(self, matchers: Sequence[QueryMatcher]) -> None:
        """Raises ConfigError without a matcher that finds objects."""
        if not any(matcher.finds_labels for matcher in matchers):
            finders = ", ".join(name for name, matcher in MATCHER_REGISTRY if matcher.finds_labels)
            raise ConfigError(
                "MODEL.DISTILL.LOSSES has PseudoLabelLoss, and no matcher finds objects for it. Add one to "
                f"MODEL.DISTILL.MATCHERS: {finders}."
            )

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """``loss_distill_{class,box,giou}_<matcher>[_<layer>]``."""
        match = next(match for match in matches if isinstance(match, LabelMatch))
        output = student.outputs["own"]
        # Of a group its losses ask for the name and the weight alone.
        group = QueryGroup(match.name, output.logits[-1], output.boxes[-1], loss_weight=self.weight)
        losses = self.criterion(output, group, match.targets, match.pairs)
        return {f"loss_distill_{name.removeprefix('loss_')}": value for name, value in losses.items()}
