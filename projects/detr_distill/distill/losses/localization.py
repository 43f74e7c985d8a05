"""Distillation of where a box's edges may lie, between two detectors that predict distributions of them.

Letters: Ls student layers, B images, Q queries, M pairs, N + 1 bins.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, POSITIVE
from ...detr.boxes import intersection_over_union
from ...distributed import shared_divisor
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from .. import divergence
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.layer_pairs import take_layers
from ..side import EDGES
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .pair_loss import ScoredPairLoss

EDGE_COUNT = 4


@LOSS_REGISTRY.register()
class LocalizationLoss(ScoredPairLoss):
    """``weight * sum over edges of T^2 KL(softmax(teacher / T) || softmax(student / T))`` on matched pairs.

    Source: LD (2102.12252) distils the distributions of a box's four edges between dense detectors, by the KL
    divergence of softened distributions [P]; here those of D-FINE (2410.13842) between matched queries [R]. A bin is a
    distance in parts of a reference box, which is each side's own, so that pairs whose references overlap little say
    little to each other: a pair counts by the IoU of the two references times the teacher's best class probability,
    and the sum is divided by that of these probabilities [R].

    Args:
        bins: what the student's and the teacher's bins stand for, see :attr:`Side.edge_bins`.
    """

    needs = frozenset({EDGES})
    remedies: ClassVar[dict[str, str]] = {EDGES: "take a D-FINE or DEIMv2 on both sides"}

    weight: float = key(
        0.25, "of the loss on distributions of edges (D-FINE to D-FINE); 0 builds nothing", NOT_NEGATIVE
    )
    temperature: float = key(5.0, "of both distributions", POSITIVE)

    @configurable
    def __init__(self, *, bins: tuple[tuple[float, ...], tuple[float, ...]], **settings: Any):
        super().__init__(**settings)
        if bins[0] != bins[1]:
            raise ConfigError(
                "MODEL.DISTILL.LOSSES: LocalizationLoss compares distributions bin by bin, and max_num_bins, up and "
                f"reg_scale of the student are {bins[0]}, of the teacher {bins[1]}. Give both the same, or remove "
                "LocalizationLoss."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return {**super().from_config(cfg, student, teacher), "bins": (student.edge_bins, teacher.edge_bins)}

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The term ``edges``, (Ls,)."""
        own, output, pairs = student.outputs[match.student_group], knowledge.output_of(match), match.pairs
        assert own.edges is not None and output.edges is not None
        with torch.autocast(own.logits.device.type, enabled=False):
            edges = own.edges.map(lambda values: pairs.take_query(values.float().flatten(3)))
            goal = output.edges.map(
                lambda values: pairs.take_target(take_layers(values.float().flatten(3), match.teacher_layer))
            )
            scores = self.classes.select_teacher(output.probabilities()).amax(-1, keepdim=True)
            score = pairs.take_target(take_layers(scores, match.teacher_layer)).squeeze(-1)
            overlap = intersection_over_union(edges.references, goal.references)
            logits, wanted = (values.logits.unflatten(-1, (EDGE_COUNT, -1)) for values in (edges, goal))
            values = divergence.softmax_kl(wanted.detach(), logits, self.temperature).sum(-1)
            weight = pairs.weight * score
            return {"edges": (values * weight * overlap).sum((1, 2)) / shared_divisor(weight.sum((1, 2)))}
