"""Bipartite matching of the teacher's and the student's predictions.

Letters: B images, Ls and Lt decoder layers, Qs and Qt queries, K shared classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, Words
from ...detr.supervision.assignment import Cost
from ...detr.supervision.matcher import box_cost
from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ...structures import DecoderOutput, Pairs
from ..divergence import binary_entropy
from ..knowledge import Knowledge
from ..match import Match
from ..side import ONE_TO_ONE
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import PredictionMatcher
from .layer_pairs import pair_layers, take_layers


@MATCHER_REGISTRY.register()
class AdaptiveMatcher(PredictionMatcher):
    """Bipartite matching between the teacher's and the student's predictions, for each decoder layer.

    Source: D3ETR (2211.09768) [P]. Cost: KL of class scores, L1 and GIoU [P: DETRDistill (2211.10156)] with weights
    1, 5, 2 [C: its code]; a class's score is a Bernoulli distribution, whatever the heads are [R]. With Qs != Qt the
    surplus stays unmatched.
    """

    name = "adaptive"

    divergence: str = key(
        "kl",
        'class term of the matching: `"kl"`, or `"bce"`, which leaves the teacher\'s entropy in; their pairs differ '
        "where the teacher has more queries than the student",
        Words("kl", "bce"),
    )
    cost_class: float = key(1.0, "weight of the class term in the matching", NOT_NEGATIVE)
    cost_l1: float = key(5.0, "weight of the L1 term", NOT_NEGATIVE)
    cost_giou: float = key(2.0, "weight of the generalised-IoU term", NOT_NEGATIVE)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        if ONE_TO_ONE not in student.gives:
            raise ConfigError(
                f"MODEL.DISTILL.MATCHERS: AdaptiveMatcher pairs each query with one, and {student.name} has many "
                "predictions an object. Use OverlapMatcher."
            )
        return settings

    @torch.no_grad()
    def cost(self, student: StudentOutput, knowledge: Knowledge) -> Cost:
        own, output = student.outputs["own"], knowledge.output
        assert output is not None
        layers = pair_layers(own.num_layers, output.num_layers, self.teacher_layer)
        with torch.autocast(own.logits.device.type, enabled=False):
            scores = take_layers(self.classes.select_teacher(output.probabilities()), layers)
            positive, negative = _log_probabilities(own)
            positive, negative = self.classes.select_student(positive), self.classes.select_student(negative)
            # t log p + (1 - t) log(1 - p) summed over classes, for every pair at once.
            likelihood = (positive - negative) @ scores.transpose(-2, -1) + negative.sum(-1, keepdim=True)
            if self.divergence == "kl" and scores.shape[2] > own.logits.shape[2]:
                # A column's own constant: it decides which teacher queries stay unmatched, and nothing where none does.
                likelihood = likelihood + binary_entropy(scores).unsqueeze(-2)
            boxes = take_layers(output.boxes.float(), layers)
            values = box_cost(own.boxes.float(), boxes, self.cost_l1, self.cost_giou) - self.cost_class * likelihood
        images, columns = values.shape[1], values.shape[-1]
        return Cost("student and teacher predictions", values, knowledge.counts or [columns] * images)

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        assert pairs is not None and knowledge.output is not None
        layers = pair_layers(len(pairs.query), knowledge.output.num_layers, self.teacher_layer)
        return Match(self.name, "own", layers, pairs)


def _log_probabilities(output: DecoderOutput) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of each class, float32."""
    if output.activation == "sigmoid":
        logits = output.logits.float()
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    probabilities = output.probabilities().clamp(1e-6, 1 - 1e-6)
    return probabilities.log(), (-probabilities).log1p()
