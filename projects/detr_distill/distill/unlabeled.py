"""Images without labels in the step: what the teacher sees of them, and losses of their own.

Letters: B images, of which the labelled ones come first.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from ..config.keys import Key, declare
from ..config.ranges import NOT_NEGATIVE
from ..errors import ConfigError, first
from ..structures import PREDICTIONS
from .knowledge import Knowledge
from .losses.base import DistillLoss
from .match import Match
from .matchers.base import QueryMatcher
from .students.base import Student, StudentOutput, StudentStep
from .teachers.base import Teacher, labels_images

logger = logging.getLogger(__name__)

WEIGHT = "MODEL.DISTILL.UNLABELED_WEIGHT"
SUFFIX = "_unlabeled"

declare(
    __name__,
    {WEIGHT: Key(1.0, "factor of the distillation losses on images of `DATASETS.UNLABELED`", NOT_NEGATIVE)},
)


@dataclass
class Part:
    """What both sides gave of the labelled images, or of the others.

    Attributes:
        labelled: which of the two.
    """

    student: StudentOutput
    knowledge: Knowledge
    matches: list[Match]
    labelled: bool = True

    def distil(self, loss: DistillLoss, unlabeled_weight: float) -> dict[str, Tensor]:
        """The losses of these images; of those without labels under names of their own (``..._unlabeled``)."""
        if self.labelled:
            return {} if loss.unlabeled_alone else loss(self.student, self.knowledge, self.matches)
        if loss.needs_labels:
            return {}
        found = loss(self.student, self.knowledge, self.matches)
        return {f"{name}{SUFFIX}": unlabeled_weight * value for name, value in found.items()}


def divide(student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> list[Part]:
    """One part, or two where a batch has images without labels."""
    truth = None if student.step is None else student.step.ground_truth
    count = None if truth is None else truth.num_labelled
    if truth is None or count == len(truth.labels):
        return [Part(student, knowledge, matches)]
    return [
        Part(student.select(images), knowledge.select(images), [match.select(images) for match in matches], labelled)
        for images, labelled in ((slice(None, count), True), (slice(count, None), False))
    ]


def as_teacher_sees(step: StudentStep) -> StudentStep:
    """The same step with each image as it was before what the student alone sees was done to it."""
    if not any("teacher_image" in entry for entry in step.batched_inputs):
        return step
    seen = [{**entry, "image": entry.get("teacher_image", entry["image"])} for entry in step.batched_inputs]
    return dataclasses.replace(step, batched_inputs=seen)


def check_unlabeled(
    cfg: CfgNode, student: Student, teacher: Teacher, matchers: Iterable[QueryMatcher], losses: Iterable[DistillLoss]
) -> None:
    """Says which losses images without labels have.

    Raises:
        ConfigError: none has, the teacher is made from labels, or a matcher asks a student for predictions that it
            makes by the labels.
    """
    if not cfg.DATALOADER.UNLABELED_PER_BATCH:
        return
    count = f"DATALOADER.UNLABELED_PER_BATCH is {cfg.DATALOADER.UNLABELED_PER_BATCH}"
    if teacher.needs_labels:
        raise ConfigError(
            f"{count}, and MODEL.DISTILL.TEACHER.NAME {type(teacher).__name__} is made from labels. Set it to 0, or "
            "name a teacher that looks at images."
        )
    asking = [type(matcher).__name__ for matcher in matchers if PREDICTIONS in matcher.requires]
    has_objects = labels_images(cfg)
    if asking and student.samples_by_labels and not has_objects:
        raise ConfigError(
            f"{count}: a {student.name} samples its regions by the labels, so that {first(asking)} finds none on "
            "images without. Set it to 0, or leave the matcher out."
        )
    names = {needs: [type(loss).__name__ for loss in losses if loss.needs_labels is needs] for needs in (False, True)}
    if not names[False] and not has_objects:
        raise ConfigError(
            f"{count}, and of MODEL.DISTILL.LOSSES {names[True]} none learns from images without labels. Set it to "
            "0, add PredictionLoss, or set MODEL.DISTILL.PSEUDO_LABELS.IMAGES to 'unlabeled'."
        )
    if names[True]:
        logger.info("%s need labels: they count on labelled images alone.", ", ".join(names[True]))
