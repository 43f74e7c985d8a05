"""The teacher's confident detections as objects of images without labels.

Letters: B images, L student layers, Q and Qt queries, N detections of an image, C copies of each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable

from ...config.keys import key
from ...config.ranges import COUNT, NOT_NEGATIVE, Range
from ...detr.supervision.assignment import Cost
from ...detr.supervision.criterion import SetCriterion
from ...errors import ConfigError
from ...iteration import needed_iteration, resolve_iteration
from ...registry import MATCHER_REGISTRY
from ...structures import GroundTruth, Pairs
from ..best_detections import best_detections
from ..knowledge import Knowledge
from ..match import LabelMatch
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import PredictionMatcher


@MATCHER_REGISTRY.register()
class PseudoLabelMatcher(PredictionMatcher):
    """Gives the teacher's confident detections to the student's queries as if they were labels.

    The assignment is the student's own with ground truth. At first each detection is given to several queries, so that
    a box that is not exact does not decide on one of them; then to one. Source: Semi-DETR (2307.08095): the threshold,
    and one-to-many before one-to-one [P]; it chooses the many by score and overlap [P], here the detections are
    repeated, as objects are in H-DETR (2207.13080) [R].

    Args:
        criterion: the student's, whose matching cost counts. one_to_many_until: iteration.
    """

    name = "pseudo"
    finds_labels: ClassVar[bool] = True

    score_threshold: float = key(0.4, "best class probability from which a detection is a label", Range(0, below=1))
    detections: int = key(100, "the teacher's best detections of an image, at most", COUNT)
    copies: int = key(4, "queries that each is given to at first", COUNT)
    one_to_many_until: float = key(
        0.5, "iteration from which it is one query, a number below 1 is a fraction of `SOLVER.MAX_ITER`", NOT_NEGATIVE
    )

    @configurable
    def __init__(self, *, criterion: SetCriterion, last_many: int, **settings: Any):
        super().__init__(**settings)
        self.criterion = criterion
        self.last_many = last_many

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        if student.criterion is None:
            raise ConfigError(
                f"MODEL.DISTILL.MATCHERS: PseudoLabelMatcher assigns labels as a DETR does, and the student is a "
                f"{student.name}. Choose a DetrDetector, or use OverlapMatcher."
            )
        last = resolve_iteration(settings["one_to_many_until"], cfg.SOLVER.MAX_ITER)
        return {**settings, "criterion": student.criterion, "last_many": last}

    @torch.no_grad()
    def cost(self, student: StudentOutput, knowledge: Knowledge) -> Cost:
        own, targets = student.outputs["own"], self._labels(student, knowledge)
        # What is no label costs every query the same, so that it takes none from a label.
        values = self.criterion.matcher(own, targets).masked_fill(~targets.valid[:, None], 0.0)
        return Cost("the teacher's detections as labels", values, targets.counts)

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> LabelMatch:
        assert pairs is not None
        targets = self._labels(student, knowledge)
        real = targets.valid.expand(len(pairs.query), -1, -1).gather(2, pairs.target)
        pairs = dataclasses.replace(pairs, weight=pairs.weight * real)
        return LabelMatch(self.name, "own", (0,) * len(pairs.query), pairs, targets=targets)

    @torch.no_grad()
    def _labels(self, student: StudentOutput, knowledge: Knowledge) -> GroundTruth:
        """(B, N * C) objects; the valid ones are those of sufficient score in images without labels."""
        assert student.step is not None and student.step.ground_truth is not None
        copies = self._copies(student.step.iteration)
        number = min(self.detections, student.outputs["own"].logits.shape[2] // copies)
        best = best_detections(knowledge, self.classes, number)
        labelled = student.step.ground_truth.num_labelled
        valid = best.score >= self.score_threshold
        valid[:labelled] = False
        images, number = valid.shape
        counts = [number * (image >= labelled) for image in range(images)]
        labels = self.classes.student_labels(best.labels)
        return GroundTruth(labels, best.boxes, valid, counts).repeat(copies)

    def _copies(self, iteration: int | None) -> int:
        if self.copies == 1 or not self.last_many:
            return 1
        now = needed_iteration(iteration, f"{self.node}.ONE_TO_MANY_UNTIL {self.one_to_many_until}")
        return self.copies if now < self.last_many else 1
