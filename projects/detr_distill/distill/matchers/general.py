"""KD-DETR's general queries: random ones that teacher and student both decode.

Letters: B images, n random queries, Q own queries, C and P widths of the teacher's queries.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...config.keys import key
from ...config.ranges import COUNT
from ...registry import MATCHER_REGISTRY
from ...structures import Pairs, QueryGroup, pairs_in_order
from ..knowledge import Knowledge
from ..match import Match
from ..side import DECODING, QUERIES
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import QueryMatcher, SharedGroup, query_maps
from .layer_pairs import pair_layers


@MATCHER_REGISTRY.register()
class GeneralMatcher(QueryMatcher):
    """Fresh random queries each step, decoded by the teacher and by the student; pair i with i.

    Source: KD-DETR (2211.08071): beside the teacher's own ("specific") queries, which :class:`FixedMatcher` with loss
    weight 0 gives, random ones show what the teacher's decoder does elsewhere [P]. Positions are standard normal, 300
    a step, one set for all images of a batch [C]; content is that of randomly chosen own queries, which is zero where
    the teacher's is [R]. The group has no detection loss, and neither side lets it see other queries. The numbers come
    from torch's generator, which the trainer seeds for every step.

    Args:
        content_projection, position_projection: from the teacher's queries to the student's, see query_exchange.py.
    """

    name = "general"
    needs = frozenset({QUERIES})
    needs_of_teacher = frozenset({DECODING})
    teacher_queries_are_own = False

    num_queries: int = key(300, "random queries that teacher and student decode in a step", COUNT)

    @configurable
    def __init__(self, *, content_projection: nn.Module, position_projection: nn.Module, **settings: Any):
        super().__init__(**settings)
        self.content_projection = content_projection
        self.position_projection = position_projection

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return {**cls.read_keys(cfg), **query_maps(teacher, student, cls.__name__)}

    def extra_groups(self, knowledge: Knowledge, images: int) -> list[QueryGroup]:
        """The student's form of the queries, with what the teacher makes of them."""
        assert knowledge.queries is not None and knowledge.decode is not None
        content, position = self.draw(knowledge.queries)
        decoded = knowledge.decode(QueryGroup(self.name, content, position, loss_weight=0.0))
        with torch.autocast(position.device.type, enabled=False):
            content, position = self.content_projection(content), self.position_projection(position)
        return [SharedGroup(self.name, content, position, loss_weight=0.0, teacher_output=decoded)]

    @torch.no_grad()
    def draw(self, own: QueryGroup) -> tuple[Tensor, Tensor]:
        """Content (B, n, C) and position (B, n, P), float32.

        Args:
            own: the teacher's own queries, (B, Q, C) and (B, Q, P).
        """
        images, queries, width = own.position.shape
        chosen = torch.randint(queries, (self.num_queries,), device=own.position.device)
        position = torch.randn(1, self.num_queries, width, device=own.position.device)
        return own.content.float().index_select(1, chosen), position.expand(images, -1, -1)

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match:
        output = student.outputs[self.name]
        layers = pair_layers(output.num_layers, knowledge.extra[self.name].num_layers, self.teacher_layer)
        pairs = pairs_in_order(output.logits, *output.logits.shape[:3])
        return Match(self.name, self.name, layers, pairs, teacher_group=self.name)
