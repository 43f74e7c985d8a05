"""The teacher's confident detections as the objects of images without labels.

Letters: B images, of which the labelled ones come first, G objects (padded), N detections of an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ..config.keys import key
from ..config.ranges import COUNT, NOT_NEGATIVE, Range, Words
from ..errors import ConfigError
from ..plugin import Plugin
from ..structures import PREDICTIONS, GroundTruth
from ..structures.fixed_batch import share_object_count
from ..structures.transfer import constant
from .best_detections import best_detections
from .classes import ClassMap
from .knowledge import Knowledge
from .students.base import Student, StudentStep
from .teachers.base import Teacher


class PseudoLabels(Plugin, node="MODEL.DISTILL.PSEUDO_LABELS"):
    """Gives the detection loss, and with it denoising and other groups, objects on images that nobody labelled.

    Everything that learns from labels then learns from the teacher's: the proposals of a two-stage detector too, which
    no loss between matched queries reaches. Source: Semi-DETR (2307.08095) thresholds the teacher's scores [P]; that a
    class's goal is the teacher's score instead of 1 is the quality focal loss (2006.04388) [P] with another quality
    [R].

    ``metrics.json`` has their number, ``pseudo_labels``, the mean of a step's images without labels.

    Args:
        student: takes the objects. classes: of the teacher and of it.
    """

    objects_an_image: Tensor

    images: str = key(
        "none",
        'where the teacher\'s confident detections are objects of the detection loss: `"none"`, or `"unlabeled"`, on '
        "the images without labels",
        Words("none", "unlabeled"),
    )
    score_threshold: float = key(0.4, "best class probability from which a detection is an object", Range(0, below=1))
    detections: int = key(100, "the teacher's best detections of an image, at most", COUNT)
    goal: str = key(
        "one",
        'what the class of such an object is to be scored: `"one"`, as a label\'s, or the teacher\'s `"score"`',
        Words("one", "score"),
    )

    weight: float = key(1.0, "factor of the detection loss of these images", NOT_NEGATIVE)

    @configurable
    def __init__(self, *, student: Student, classes: ClassMap, **settings: Any):
        super().__init__(**settings)
        self.student, self.classes = student, classes
        self.register_buffer("objects_an_image", torch.zeros(()), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        node = f"{cls.node}.IMAGES is {cfg.MODEL.DISTILL.PSEUDO_LABELS.IMAGES!r}"
        if teacher.classes is None or PREDICTIONS not in teacher.gives:
            raise ConfigError(
                f"{node}, and MODEL.DISTILL.TEACHER.NAME {type(teacher).__name__} detects nothing. Set it to 'none', "
                "or name a teacher that detects."
            )
        settings = cls.read_keys(cfg)
        if student.criterion is None and (settings["goal"] != "one" or settings["weight"] != 1):
            raise ConfigError(
                f"{cls.node}.GOAL is {settings['goal']!r} and its WEIGHT {settings['weight']}, and the losses of a "
                f"{student.name} take every label as it is. Set GOAL to 'one' and WEIGHT to 1.0."
            )
        if not cfg.DATALOADER.UNLABELED_PER_BATCH:
            raise ConfigError(
                f"{node}, and DATALOADER.UNLABELED_PER_BATCH is 0. Give it and DATASETS.UNLABELED, or set IMAGES to "
                "'none'."
            )
        return {**settings, "student": student, "classes": teacher.classes}

    @torch.no_grad()
    def forward(self, step: StudentStep, knowledge: Knowledge) -> StudentStep:
        """The step with these objects, in which every image counts as labelled."""
        truth = step.ground_truth
        assert truth is not None
        labelled = truth.num_labelled
        if labelled == len(truth.labels):
            return step
        best = best_detections(knowledge.select(slice(labelled, None)), self.classes, self.detections)
        valid = best.score >= self.score_threshold
        # How many there are decides on the shapes of what follows: the one place where a step asks the device for it.
        found = valid.sum(1).tolist()
        counts = [*truth.counts[:labelled], *found]
        width = max(truth.labels.shape[1], *found)
        self.objects_an_image.fill_(sum(found) / len(found))
        labels = _join(truth.labels[:labelled], self.classes.student_labels(best.labels), width)
        scores = best.score.to(truth.boxes.dtype) if self.goal == "score" else None
        weights = (1.0,) * labelled + (self.weight,) * len(found)
        joined = GroundTruth(
            labels,
            _join(truth.boxes[:labelled], best.boxes.to(truth.boxes.dtype), width),
            _join(truth.valid[:labelled], valid, width),
            counts,
            scores=None if scores is None else _join(torch.ones_like(truth.boxes[:labelled, :, 0]), scores, width),
            weights=None if self.weight == 1 else constant(weights, valid.device),
        )
        return self.student.label(step, share_object_count(joined))

    def recorded_values(self) -> dict[str, Tensor]:
        """What the trainer records beside the losses."""
        return {"pseudo_labels": self.objects_an_image}


def _join(first: Tensor, second: Tensor, width: int) -> Tensor:
    """The objects (B, G, ...) of both parts of a batch, ``width`` of each image."""
    parts = []
    for values in (first, second):
        missing = max(width - values.shape[1], 0)
        padding = (0, missing) if values.dim() == 2 else (0, 0, 0, missing)
        parts.append(F.pad(values[:, :width], padding))
    return torch.cat(parts)
