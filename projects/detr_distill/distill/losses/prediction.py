"""Distillation of class scores and boxes between matched queries.

Letters: Ls student layers, B images, M pairs, K shared classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, POSITIVE, Range, Words
from ...detr.boxes import generalized_iou
from ...distributed import shared_divisor
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import DecoderOutput
from .. import divergence
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.base import QueryMatcher
from ..matchers.layer_pairs import take_layers
from ..side import ASSIGNMENT
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .pair_loss import ScoredPairLoss


@LOSS_REGISTRY.register()
class PredictionLoss(ScoredPairLoss):
    """``weight * (class_weight * D(class) + l1_weight * L1 + giou_weight * (1 - GIoU))`` on matched pairs.

    Source: D3ETR (2211.09768) distils predictions [P]; the kind of each term, the weights 1 / 5 / 2 and what the sum
    is divided by are reconstructions [R], chosen by measurement (docs/benchmarks.md). Unmatched queries get no target.
    DETRDistill (2211.10156) gives class scores of the teacher's positives alone, those of its queries that its own
    matching pairs with an object, and boxes of all [P].
    """

    class_weight: float = key(1.0, "weight of the class term", NOT_NEGATIVE, earlier="weight_class")
    l1_weight: float = key(5.0, "weight of the L1 term", NOT_NEGATIVE, earlier="weight_l1")
    giou_weight: float = key(2.0, "weight of the generalised-IoU term", NOT_NEGATIVE, earlier="weight_giou")
    divergence: str = key(
        "focal_bce",
        'class term: `"focal_bce"`, `"bce"`, `"kl"` or `"softmax_kl"` (softmax over the classes whatever the heads '
        "are)",
        Words("focal_bce", "bce", "kl", "softmax_kl"),
        earlier="kind",
    )
    temperature: float = key(1.0, 'of all but `"focal_bce"`', POSITIVE)
    box_score_threshold: float = key(
        0.25,
        "box terms count where the teacher's best class probability is above this; 0 takes every pair",
        Range(0, below=1),
    )
    normalizer: str = key(
        "teacher_score",
        'divisor of all terms: the sum of the teacher\'s best probabilities over the pairs, or `"pairs"`, their '
        "number; of the class term over the pairs that it takes",
        Words("teacher_score", "pairs"),
    )
    class_targets: str = key(
        "all",
        'the class term is taken on all pairs, or on those with the teacher\'s `"positives"`, its queries that its '
        "own matching gives an object",
        Words("all", "positives"),
    )
    pair_weight: str = key(
        "equal",
        'all pairs count alike, or by the teacher\'s best class probability (`"teacher_score"`, KD-DETR)',
        Words("equal", "teacher_score"),
    )

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        if self.divergence == "focal_bce" and self.temperature != 1:
            raise ConfigError(
                f"{self.node}.TEMPERATURE is {self.temperature}, and DIVERGENCE 'focal_bce' compares the scores as "
                "they are. Set DIVERGENCE 'bce', 'kl' or 'softmax_kl', or TEMPERATURE 1.0."
            )
        self.needs_assignment = self.class_targets == "positives"

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        settings = super().from_config(cfg, student, teacher)
        if settings["class_targets"] == "positives" and ASSIGNMENT not in teacher.gives:
            raise ConfigError(
                f"{cls.node}.CLASS_TARGETS is 'positives', the queries to which a DetrDetector's own matching gives an "
                f"object, and {type(teacher).__name__} has none. Set it to 'all'."
            )
        return settings

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        return super().is_active(node) and any((node.CLASS_WEIGHT, node.L1_WEIGHT, node.GIOU_WEIGHT))

    def check_matchers(self, matchers: Sequence[QueryMatcher]) -> None:
        super().check_matchers(matchers)
        foreign = [m for m in matchers if self.uses(m) and not m.teacher_queries_are_own]
        if self.needs_assignment and foreign:
            raise ConfigError(
                f"{self.node}.CLASS_TARGETS is 'positives', which are known of the teacher's own queries and not of "
                f"{type(foreign[0]).__name__}'s. Set it to 'all', or name the other matchers in GROUPS."
            )

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``class``, ``box`` and ``giou``, (Ls,) each."""
        student_output, teacher_output = student.outputs[match.student_group], knowledge.output_of(match)
        weights = {"class": self.class_weight, "box": self.l1_weight, "giou": self.giou_weight}
        with torch.autocast(student_output.logits.device.type, enabled=False):
            pairs = match.pairs
            student_boxes = pairs.take_query(student_output.boxes.float())
            teacher_boxes = pairs.take_target(take_layers(teacher_output.boxes.float(), match.teacher_layer))
            probabilities = self.classes.select_teacher(teacher_output.probabilities())
            teacher_scores = pairs.take_target(take_layers(probabilities, match.teacher_layer))
            score = teacher_scores.amax(-1)
            count = score if self.pair_weight == "teacher_score" else torch.ones_like(score)
            class_weight = self._class_weight(knowledge, match)
            box_weight = pairs.weight * (score > self.box_score_threshold)
            divisor = self._divisor(score, pairs.weight)
            values = {
                "class": (self._class_divergence(student_output, teacher_output, teacher_scores, match), class_weight),
                "box": ((student_boxes - teacher_boxes).abs().sum(-1), box_weight),
                "giou": (1 - generalized_iou(student_boxes, teacher_boxes), box_weight),
            }
            divisors = {"class": self._divisor(score, class_weight), "box": divisor, "giou": divisor}
            return {
                name: weights[name] * (value * weight * count).sum((1, 2)) / divisors[name]
                for name, (value, weight) in values.items()
            }

    def _divisor(self, score: Tensor, weight: Tensor) -> Tensor:
        """(Ls,), at least 1, from the teacher's best probabilities and the weights of the pairs (Ls, B, M)."""
        size = score * weight if self.normalizer == "teacher_score" else weight
        return shared_divisor(size.sum((1, 2)))

    def _class_weight(self, knowledge: Knowledge, match: Match) -> Tensor:
        """(Ls, B, M): 1 for the pairs whose class scores are compared."""
        if not self.needs_assignment:
            return match.pairs.weight
        assert knowledge.assignment is not None and knowledge.output is not None
        positive = knowledge.assignment.has_query(knowledge.output.logits.shape[2])
        positive = take_layers(positive, match.teacher_layer).unsqueeze(-1)
        return match.pairs.weight * match.pairs.take_target(positive).squeeze(-1)

    def _class_divergence(
        self, student: DecoderOutput, teacher: DecoderOutput, teacher_scores: Tensor, match: Match
    ) -> Tensor:
        """(Ls, B, M) divergence of the pairs' class scores."""
        softmax = student.activation == teacher.activation == "softmax" and self.classes.identical
        if self.divergence == "kl" and softmax:
            return self._of_logits(divergence.softmax_kl, teacher.logits, student.logits, match)
        if self.divergence == "softmax_kl":
            teacher_logits = self.classes.select_teacher(teacher.class_logits())
            student_logits = self.classes.select_student(student.class_logits())
            return self._of_logits(divergence.softmax_kl, teacher_logits, student_logits, match)
        # The class probabilities of a softmax are read as independent scores.
        student_logits = self.classes.select_student(student.score_logits())
        if self.divergence == "focal_bce":
            return divergence.focal_binary_cross_entropy(teacher_scores, match.pairs.take_query(student_logits))
        teacher_logits = self.classes.select_teacher(teacher.score_logits())
        compare = divergence.binary_kl if self.divergence == "kl" else divergence.softened_cross_entropy
        return self._of_logits(compare, teacher_logits, student_logits, match)

    def _of_logits(self, compare: Callable, teacher_logits: Tensor, student_logits: Tensor, match: Match) -> Tensor:
        matched = match.pairs.take_target(take_layers(teacher_logits, match.teacher_layer))
        return compare(matched, match.pairs.take_query(student_logits), self.temperature)
