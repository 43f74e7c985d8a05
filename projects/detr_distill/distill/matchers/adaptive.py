"""Bipartite matching of the teacher's and the student's predictions.

Letters: B images, Ls and Lt decoder layers, Qs and Qt queries, K shared classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor

from ...detr import DetrDetector
from ...detr.supervision.assignment import Cost
from ...detr.supervision.matcher import box_cost
from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ...structures import PREDICTIONS, DecoderOutput, Pairs
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import QueryMatcher, shared_classes
from .layers import layer_map, take_layers


@MATCHER_REGISTRY.register()
class AdaptiveMatcher(QueryMatcher):
    """Bipartite matching between the teacher's and the student's predictions, for each decoder layer.

    Source: D3ETR (2211.09768) [P]. Cost [R]: soft binary cross-entropy summed over classes, L1 and GIoU with weights
    1, 5, 2 (the weights of DETRDistill's code). With Qs != Qt the surplus stays unmatched.

    Args:
        classes: shared classes. cost_class, cost_l1, cost_giou: weights. teacher_layer: "aligned" or "last".
    """

    name = "adaptive"
    requires = frozenset({PREDICTIONS})

    @configurable
    def __init__(self, *, classes: ClassMap, cost_class: float, cost_l1: float, cost_giou: float, teacher_layer: str):
        super().__init__()
        self.classes = classes
        self.cost_class, self.cost_l1, self.cost_giou = cost_class, cost_l1, cost_giou
        self.teacher_layer = teacher_layer

    @classmethod
    def from_config(cls, cfg, student, teacher):
        if not isinstance(student, DetrDetector):
            raise ConfigError(
                f"MODEL.DISTILL.MATCHERS: AdaptiveMatcher pairs each query with one, and {type(student).__name__} has "
                "many predictions an object. Use OverlapMatcher."
            )
        node = cfg.MODEL.DISTILL.ADAPTIVE_MATCHER
        return {
            "classes": shared_classes(teacher, "AdaptiveMatcher"),
            "cost_class": node.COST_CLASS,
            "cost_l1": node.COST_L1,
            "cost_giou": node.COST_GIOU,
            "teacher_layer": cfg.MODEL.DISTILL.TEACHER_LAYER,
        }

    @torch.no_grad()
    def cost(self, student: StudentOutput, knowledge: Knowledge) -> Cost:
        own, output = student.outputs["own"], knowledge.output
        assert output is not None
        layers = layer_map(own.num_layers, output.num_layers, self.teacher_layer)
        with torch.autocast(own.logits.device.type, enabled=False):
            target = take_layers(self.classes.select_teacher(output.probabilities()), layers)
            positive, negative = _log_probabilities(own)
            positive, negative = self.classes.select_student(positive), self.classes.select_student(negative)
            # -(t log p + (1 - t) log(1 - p)) summed over classes, for every pair at once.
            entropy = (positive - negative) @ target.transpose(-2, -1) + negative.sum(-1, keepdim=True)
            boxes = take_layers(output.boxes.float(), layers)
            values = box_cost(own.boxes.float(), boxes, self.cost_l1, self.cost_giou) - self.cost_class * entropy
        images, columns = values.shape[1], values.shape[-1]
        return Cost("student and teacher predictions", values, knowledge.counts or [columns] * images)

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        assert pairs is not None and knowledge.output is not None
        layers = layer_map(len(pairs.query), knowledge.output.num_layers, self.teacher_layer)
        return Match(self.name, "own", layers, pairs)


def _log_probabilities(output: DecoderOutput) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of each class, float32."""
    if output.activation == "sigmoid":
        logits = output.logits.float()
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    probabilities = output.probabilities().clamp(1e-6, 1 - 1e-6)
    return probabilities.log(), (-probabilities).log1p()
