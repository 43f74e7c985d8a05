"""The teacher's own queries as a group of the student.

Letters: B images, Ls and Lt decoder layers, Qs and Qt queries, G objects.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import nn

from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ...structures import Pairs, QueryGroup, pairs_in_order
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput
from .base import QueryMatcher, query_maps
from .layers import layer_map


@MATCHER_REGISTRY.register()
class FixedMatcher(QueryMatcher):
    """The teacher's frozen queries as an auxiliary group of the student; pair i with i.

    Source: D3ETR (2211.09768) [P]: the group shares the decoder's parameters, never sees the student's own queries,
    and on the last layer takes the teacher's assignment to the ground truth. Queries of another width or kind pass
    a learned map [R], so that the student's group learns to read them.

    Args:
        content_projection, position_projection: from the teacher's queries to the student's, see query_exchange.py.
        teacher_assignment: "last", "all" or "none": layers on which the teacher's assignment replaces the group's own.
        loss_weight: of the group's detection loss; 0 leaves it unsupervised. student_layers: Ls.
        teacher_layer: "aligned" or "last".
    """

    name = "fixed"

    @configurable
    def __init__(
        self,
        *,
        content_projection: nn.Module,
        position_projection: nn.Module,
        student_layers: int,
        teacher_assignment: str,
        loss_weight: float,
        teacher_layer: str,
    ):
        super().__init__()
        if teacher_assignment not in ("last", "all", "none"):
            raise ConfigError(
                f"MODEL.DISTILL.FIXED_MATCHER.TEACHER_ASSIGNMENT is '{teacher_assignment}'. "
                "Known: 'last', 'all', 'none'."
            )
        forced = {"last": [student_layers - 1], "all": list(range(student_layers)), "none": []}
        self.forced_layers = forced[teacher_assignment]
        self.student_layers = student_layers
        self.loss_weight = loss_weight
        self.teacher_layer = teacher_layer
        self.content_projection = content_projection
        self.position_projection = position_projection

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL
        return {
            **query_maps(teacher, student, "FixedMatcher"),
            "student_layers": len(student.decoder.layers),
            "teacher_assignment": node.FIXED_MATCHER.TEACHER_ASSIGNMENT,
            "loss_weight": node.FIXED_MATCHER.LOSS_WEIGHT,
            "teacher_layer": node.TEACHER_LAYER,
        }

    def extra_groups(self, knowledge: Knowledge, images: int) -> list[QueryGroup]:
        queries, output, cost = knowledge.queries, knowledge.output, knowledge.label_cost
        assert queries is not None and output is not None and cost is not None
        layers = layer_map(self.student_layers, output.num_layers, self.teacher_layer)
        with torch.autocast(queries.position.device.type, enabled=False):
            content = self.content_projection(queries.content.detach().float())
            position = self.position_projection(queries.position.detach().float())
        return [
            QueryGroup(
                name=self.name,
                content=content,
                position=position,
                loss_weight=self.loss_weight,
                forced_cost={layer: cost[layers[layer]] for layer in self.forced_layers},
            )
        ]

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        output = student.outputs[self.name]
        assert knowledge.output is not None
        layers = layer_map(output.num_layers, knowledge.output.num_layers, self.teacher_layer)
        return Match(self.name, self.name, layers, pairs_in_order(output.logits, *output.logits.shape[:3]))
