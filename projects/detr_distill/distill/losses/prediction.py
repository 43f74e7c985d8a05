"""Distillation of class scores and boxes between matched queries.

Letters: Ls student layers, B images, M pairs, K shared classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...detr import DetrDetector
from ...detr.boxes import generalized_iou
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ...structures import DecoderOutput
from .. import divergence
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.layers import take_layers
from ..students.base import StudentOutput, network_of
from .base import DistillLoss


@LOSS_REGISTRY.register()
class PredictionLoss(DistillLoss):
    """``weight * (weight_class * D(class) + weight_l1 * L1 + weight_giou * (1 - GIoU))`` on matched pairs.

    Source: D3ETR (2211.09768) distils predictions [P]; the kind of each term, the weights 1 / 5 / 2 and what the sum
    is divided by are reconstructions [R], chosen by measurement (docs/benchmarks.md). Unmatched queries get no target.
    DETRDistill (2211.10156) gives class scores of the teacher's positives alone, those of its queries that its own
    matching pairs with an object, and boxes of all [P].

    Args:
        classes: shared classes. weight_class, weight_l1, weight_giou: of the three terms.
        kind: "focal_bce", "bce", "kl" or "softmax_kl", see divergence.py; the last takes the softmax of the shared
            classes' logits whatever the heads are, as KD-DETR does [C]. temperature: of all but "focal_bce".
        box_score_threshold: box terms are taken where the teacher's best class probability is above this.
        normalizer: "teacher_score": the sum of the teacher's best probabilities over the pairs; "pairs": their number;
            of the class term over the pairs that it takes.
        class_targets: the class term is taken on "all" pairs, or those with the teacher's "positives".
        pair_weight: pairs count "equal", or by the teacher's best class probability, "teacher_score", as in KD-DETR
            (2211.08071) [P].
    """

    @configurable
    def __init__(
        self,
        *,
        classes: ClassMap,
        weight_class: float,
        weight_l1: float,
        weight_giou: float,
        kind: str = "focal_bce",
        temperature: float = 1.0,
        box_score_threshold: float = 0.25,
        normalizer: str = "teacher_score",
        class_targets: str = "all",
        pair_weight: str = "equal",
        weight: float = 1.0,
        groups: list[str] = (),  # type: ignore[assignment]
        layers: str = "all",
    ):
        super().__init__(key="PREDICTION_LOSS", weight=weight, groups=groups, layers=layers)
        for key, value, known in (
            ("DIVERGENCE", kind, ("focal_bce", "bce", "kl", "softmax_kl")),
            ("PAIR_WEIGHT", pair_weight, ("equal", "teacher_score")),
            ("NORMALIZER", normalizer, ("teacher_score", "pairs")),
            ("CLASS_TARGETS", class_targets, ("all", "positives")),
        ):
            if value not in known:
                raise ConfigError(f"MODEL.DISTILL.PREDICTION_LOSS.{key} is '{value}'. Known: {', '.join(known)}.")
        if kind == "focal_bce" and temperature != 1:
            raise ConfigError(
                f"MODEL.DISTILL.PREDICTION_LOSS.TEMPERATURE is {temperature}, and DIVERGENCE 'focal_bce' compares the "
                "scores as they are. Set DIVERGENCE 'bce', 'kl' or 'softmax_kl', or TEMPERATURE 1.0."
            )
        self.classes = classes
        self.weights = {"class": weight_class, "box": weight_l1, "giou": weight_giou}
        self.kind, self.temperature = kind, temperature
        self.box_score_threshold = box_score_threshold
        self.normalizer = normalizer
        self.needs_assignment = class_targets == "positives"
        self.by_score = pair_weight == "teacher_score"

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.PREDICTION_LOSS
        if node.CLASS_TARGETS == "positives" and not isinstance(network_of(teacher), DetrDetector):
            raise ConfigError(
                "MODEL.DISTILL.PREDICTION_LOSS.CLASS_TARGETS is 'positives', the queries to which a DetrDetector's own "
                f"matching gives an object, and {type(teacher).__name__} has none. Set it to 'all'."
            )
        return {
            "classes": teacher.classes,
            "weight_class": node.CLASS_WEIGHT,
            "weight_l1": node.L1_WEIGHT,
            "weight_giou": node.GIOU_WEIGHT,
            "kind": node.DIVERGENCE,
            "temperature": node.TEMPERATURE,
            "box_score_threshold": node.BOX_SCORE_THRESHOLD,
            "normalizer": node.NORMALIZER,
            "class_targets": node.CLASS_TARGETS,
            "pair_weight": node.PAIR_WEIGHT,
            "weight": node.WEIGHT,
            "groups": list(node.GROUPS),
            "layers": node.LAYERS,
        }

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        return super().is_active(node) and any((node.CLASS_WEIGHT, node.L1_WEIGHT, node.GIOU_WEIGHT))

    def check_groups(self, used: list[str]) -> None:
        super().check_groups(used)
        if self.needs_assignment and "general" in (self.groups or used):
            raise ConfigError(
                "MODEL.DISTILL.PREDICTION_LOSS.CLASS_TARGETS is 'positives', which are known of the teacher's own "
                "queries and not of GeneralMatcher's. Set it to 'all', or name the other matchers in GROUPS."
            )

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The weighted terms ``class``, ``box`` and ``giou``, (Ls,) each."""
        output, teacher = student.outputs[match.student_group], knowledge.output_of(match)
        with torch.autocast(output.logits.device.type, enabled=False):
            pairs = match.pairs
            pred_boxes = pairs.take_query(output.boxes.float())
            goal_boxes = pairs.take_target(take_layers(teacher.boxes.float(), match.teacher_layer))
            probabilities = take_layers(self.classes.select_teacher(teacher.probabilities()), match.teacher_layer)
            goal = pairs.take_target(probabilities)
            score = goal.amax(-1)
            count = score if self.by_score else torch.ones_like(score)
            class_weight = self._class_weight(knowledge, match)
            box_weight = pairs.weight * (score > self.box_score_threshold)
            divisor = self._divisor(score, pairs.weight)
            values = {
                "class": (self._class_divergence(output, teacher, goal, match), class_weight),
                "box": ((pred_boxes - goal_boxes).abs().sum(-1), box_weight),
                "giou": (1 - generalized_iou(pred_boxes, goal_boxes), box_weight),
            }
            divisors = {"class": self._divisor(score, class_weight), "box": divisor, "giou": divisor}
            return {
                name: self.weights[name] * (value * weight * count).sum((1, 2)) / divisors[name]
                for name, (value, weight) in values.items()
            }

    def _divisor(self, score: Tensor, weight: Tensor) -> Tensor:
        """(Ls,), at least 1, from the teacher's best probabilities and the weights of the pairs (Ls, B, M)."""
        size = score * weight if self.normalizer == "teacher_score" else weight
        return size.sum((1, 2)).clamp(min=1)

    def _class_weight(self, knowledge: Knowledge, match: Match) -> Tensor:
        """(Ls, B, M): 1 for the pairs whose class scores are compared."""
        if not self.needs_assignment:
            return match.pairs.weight
        assert knowledge.assignment is not None and knowledge.output is not None
        positive = knowledge.assignment.has_query(knowledge.output.logits.shape[2])
        positive = take_layers(positive, match.teacher_layer).unsqueeze(-1)
        return match.pairs.weight * match.pairs.take_target(positive).squeeze(-1)

    def _class_divergence(self, output: DecoderOutput, teacher: DecoderOutput, goal: Tensor, match: Match) -> Tensor:
        """(Ls, B, M) divergence of the pairs' class scores."""
        if self.kind == "kl" and output.activation == teacher.activation == "softmax" and self.classes.identical:
            return self._logit_divergence(divergence.softmax_kl, output.logits, teacher.logits, match)
        if self.kind == "softmax_kl":
            own, target = output.class_logits(), teacher.class_logits()
            own, target = self.classes.select_student(own), self.classes.select_teacher(target)
            return self._logit_divergence(divergence.softmax_kl, own, target, match)
        # The class probabilities of a softmax are read as independent scores.
        own = self.classes.select_student(output.score_logits())
        if self.kind == "focal_bce":
            return divergence.focal_binary_cross_entropy(goal, match.pairs.take_query(own))
        target = self.classes.select_teacher(teacher.score_logits())
        compare = divergence.binary_kl if self.kind == "kl" else divergence.softened_cross_entropy
        return self._logit_divergence(compare, own, target, match)

    def _logit_divergence(self, compare: Callable, own: Tensor, target: Tensor, match: Match) -> Tensor:
        goal = match.pairs.take_target(take_layers(target, match.teacher_layer))
        return compare(goal, match.pairs.take_query(own), self.temperature)
