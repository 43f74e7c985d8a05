"""The teacher's own queries as a group of the student.

Letters: B images, Ls and Lt decoder layers, Qs and Qt queries, G objects.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, Words
from ...registry import MATCHER_REGISTRY
from ...structures import PREDICTIONS, Pairs, QueryGroup, pairs_in_order
from ..knowledge import Knowledge
from ..match import Match
from ..side import ASSIGNMENT, QUERIES
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import QueryMatcher, query_maps
from .layer_pairs import pair_layers


@MATCHER_REGISTRY.register()
class FixedMatcher(QueryMatcher):
    """The teacher's frozen queries as an auxiliary group of the student; pair i with i.

    Source: D3ETR (2211.09768) [P]: the group shares the decoder's parameters, never sees the student's own queries,
    and on the last layer takes the teacher's assignment to the ground truth. Queries of another width or kind pass
    a learned map [R], so that the student's group learns to read them.

    Args:
        content_projection, position_projection: from the teacher's queries to the student's, see query_exchange.py.
        student_layers: Ls.
    """

    name = "fixed"
    needs = frozenset({QUERIES})

    teacher_assignment: str = key(
        "last",
        'layers on which the auxiliary group has the teacher\'s label assignment: `"last"`, `"all"` or `"none"`',
        Words("last", "all", "none"),
    )
    loss_weight: float = key(
        1.0, "weight of the auxiliary group's detection loss; 0 leaves the group to distillation alone", NOT_NEGATIVE
    )

    @configurable
    def __init__(
        self,
        *,
        content_projection: nn.Module,
        position_projection: nn.Module,
        student_layers: int,
        **settings: Any,
    ):
        super().__init__(**settings)
        forced = {"last": [student_layers - 1], "all": list(range(student_layers)), "none": []}
        self.forced_layers = forced[self.teacher_assignment]
        self.needs_of_teacher = frozenset({PREDICTIONS, ASSIGNMENT} if self.forced_layers else {PREDICTIONS})
        self.student_layers = student_layers
        self.content_projection = content_projection
        self.position_projection = position_projection

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return {
            **cls.read_keys(cfg),
            **query_maps(teacher, student, cls.__name__),
            "student_layers": student.num_layers,
        }

    def extra_groups(self, knowledge: Knowledge, images: int) -> list[QueryGroup]:
        queries, output = knowledge.queries, knowledge.output
        cost = knowledge.matching_cost() if self.forced_layers else None
        assert queries is not None and output is not None
        layers = pair_layers(self.student_layers, output.num_layers, self.teacher_layer)
        with torch.autocast(queries.position.device.type, enabled=False):
            content = self.content_projection(queries.content.detach().float())
            position = self.position_projection(queries.position.detach().float())
        return [
            QueryGroup(
                name=self.name,
                content=content,
                position=position,
                loss_weight=self.loss_weight,
                forced_cost={} if cost is None else {layer: cost[layers[layer]] for layer in self.forced_layers},
            )
        ]

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        output = student.outputs[self.name]
        assert knowledge.output is not None
        layers = pair_layers(output.num_layers, knowledge.output.num_layers, self.teacher_layer)
        return Match(self.name, self.name, layers, pairs_in_order(output.logits, *output.logits.shape[:3]))
