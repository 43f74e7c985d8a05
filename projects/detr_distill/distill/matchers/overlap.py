"""Prediction matching for students with many predictions an object: convolutional detectors.

Letters: B images, Qt teacher queries, N of them that teach, R student predictions, M of them for each.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config.keys import key
from ...config.ranges import COUNT, SHARE, Range
from ...detr.boxes import pairwise_iou
from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ...structures import Pairs
from ..best_detections import best_detections
from ..knowledge import Knowledge
from ..match import Match
from ..side import ONE_TO_ONE
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import PredictionMatcher
from .layer_pairs import pair_layers


@MATCHER_REGISTRY.register()
class OverlapMatcher(PredictionMatcher):
    """Each confident detection of the teacher teaches the student's predictions that overlap it the most.

    A dense detector suppresses duplicates afterwards, so several predictions may follow one detection; each follows
    that one alone which it overlaps the most. The teacher's last layer counts. The form is ours [R]: KD-DETR
    (2211.08071) teaches a Faster R-CNN by a DINO [P] in another.
    """

    name = "overlap"

    teacher_queries: int = key(
        50, "of the teacher's best detections of an image, those that teach a convolutional student", COUNT
    )
    score_threshold: float = key(0.3, "best class probability from which they do", Range(0, below=1))
    student_predictions: int = key(9, "the student's predictions that learn from each, those of the highest IoU", COUNT)
    min_iou: float = key(0.5, "IoU from which they do", SHARE)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        if ONE_TO_ONE in student.gives:
            raise ConfigError(
                "MODEL.DISTILL.MATCHERS: OverlapMatcher is for students with many predictions an object, and this one "
                f"is a {student.name}. Use AdaptiveMatcher."
            )
        return super().from_config(cfg, student, teacher)

    @torch.no_grad()
    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        own, output = student.outputs["own"], knowledge.output
        assert output is not None
        with torch.autocast(own.logits.device.type, enabled=False):
            best = best_detections(knowledge, self.classes, self.teacher_queries)
            iou = pairwise_iou(best.boxes, own.boxes[-1].float()) * (best.score > self.score_threshold).unsqueeze(-1)
        positions, weight = self._closest(iou)
        index = best.query.unsqueeze(-1).expand_as(positions)
        positions, index, weight = (values.flatten(1).unsqueeze(0) for values in (positions, index, weight))
        layers = pair_layers(1, output.num_layers, self.teacher_layer)
        return Match(self.name, "own", layers, Pairs(positions, index, weight))

    def _closest(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """From the IoU (B, N, R) to predictions of each detection (B, N, M), and 1 for those that learn from it."""
        detections = iou.shape[1]
        overlap, positions = iou.topk(min(self.student_predictions, iou.shape[2]), dim=2)
        closest = iou.argmax(1, keepdim=True).expand(-1, detections, -1).gather(2, positions)
        is_closest = closest == torch.arange(detections, device=iou.device)[:, None]
        return positions, (is_closest & (overlap >= self.min_iou) & (overlap > 0)).float()
