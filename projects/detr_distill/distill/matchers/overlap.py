"""Prediction matching for students with many predictions an object: convolutional detectors.

Letters: B images, Qt teacher queries, N of them that teach, R student predictions, M of them for each.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor

from ...detr import DetrDetector
from ...detr.boxes import pairwise_iou
from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ...structures import PREDICTIONS, Pairs
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import QueryMatcher, shared_classes
from .layers import layer_map


@MATCHER_REGISTRY.register()
class OverlapMatcher(QueryMatcher):
    """Each confident detection of the teacher teaches the student's predictions that overlap it the most.

    A dense detector suppresses duplicates afterwards, so several predictions may follow one detection; each follows
    that one alone which it overlaps the most. The teacher's last layer counts. The form is ours [R]: KD-DETR
    (2211.08071) teaches a Faster R-CNN by a DINO [P] in another.

    Args:
        classes: shared classes. teacher_queries: N. student_predictions: M.
        score_threshold: of the teacher's best class probability. min_iou: of teacher's and student's boxes.
        teacher_layer: "aligned" or "last", the same here.
    """

    name = "overlap"
    requires = frozenset({PREDICTIONS})

    @configurable
    def __init__(
        self,
        *,
        classes: ClassMap,
        teacher_queries: int = 50,
        score_threshold: float = 0.3,
        student_predictions: int = 9,
        min_iou: float = 0.5,
        teacher_layer: str = "aligned",
    ):
        super().__init__()
        self.classes = classes
        self.teacher_queries, self.score_threshold = teacher_queries, score_threshold
        self.student_predictions, self.min_iou = student_predictions, min_iou
        self.teacher_layer = teacher_layer

    @classmethod
    def from_config(cls, cfg, student, teacher):
        if isinstance(student, DetrDetector):
            raise ConfigError(
                "MODEL.DISTILL.MATCHERS: OverlapMatcher is for students with many predictions an object, and this one "
                "is a DetrDetector. Use AdaptiveMatcher."
            )
        node = cfg.MODEL.DISTILL.OVERLAP_MATCHER
        return {
            "classes": shared_classes(teacher, "OverlapMatcher"),
            "teacher_queries": node.TEACHER_QUERIES,
            "score_threshold": node.SCORE_THRESHOLD,
            "student_predictions": node.STUDENT_PREDICTIONS,
            "min_iou": node.MIN_IOU,
            "teacher_layer": cfg.MODEL.DISTILL.TEACHER_LAYER,
        }

    @torch.no_grad()
    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        own, output = student.outputs["own"], knowledge.output
        assert output is not None
        with torch.autocast(own.logits.device.type, enabled=False):
            score = self.classes.select_teacher(output.probabilities()[-1]).amax(-1)
            if knowledge.counts is not None:  # what follows them is padding
                counts = torch.tensor(knowledge.counts).to(score.device, non_blocking=True)
                score = score.masked_fill(torch.arange(score.shape[1], device=score.device) >= counts[:, None], -1.0)
            score, chosen = score.topk(min(self.teacher_queries, score.shape[1]), dim=1)
            goals = output.boxes[-1].float().gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
            iou = pairwise_iou(goals, own.boxes[-1].float()) * (score > self.score_threshold).unsqueeze(-1)
        places, weight = self._closest(iou)
        index = chosen.unsqueeze(-1).expand_as(places)
        places, index, weight = (values.flatten(1).unsqueeze(0) for values in (places, index, weight))
        layers = layer_map(1, output.num_layers, self.teacher_layer)
        return Match(self.name, "own", layers, Pairs(places, index, weight))

    def _closest(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """From the IoU (B, N, R) to predictions of each detection (B, N, M), and 1 for those that learn from it."""
        detections = iou.shape[1]
        overlap, places = iou.topk(min(self.student_predictions, iou.shape[2]), dim=2)
        closest = iou.argmax(1, keepdim=True).expand(-1, detections, -1).gather(2, places)
        is_closest = closest == torch.arange(detections, device=iou.device)[:, None]
        return places, (is_closest & (overlap >= self.min_iou) & (overlap > 0)).float()
