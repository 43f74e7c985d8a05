"""Which student query is compared with which teacher query.

A matcher names extra query groups that the student must decode, and pairs student queries with teacher queries.
MixMatcher of D3ETR (2211.09768) is AdaptiveMatcher and FixedMatcher together.

Letters: B images, Ls and Lt decoder layers, Qs and Qt queries, K shared classes, C and P widths of student queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ..detr import DetrDetector
from ..detr.assignment import Cost
from ..detr.matcher import box_cost
from ..errors import ConfigError
from ..pairs import Pairs, pairs_in_order
from ..registry import MATCHER_REGISTRY
from ..structures import PREDICTIONS, DecoderOutput, QueryGroup
from .classes import ClassMap
from .knowledge import Knowledge, Match
from .layers import layer_map, take_layers
from .query_exchange import content_map, position_map
from .students import StudentOutput, network_of


def shared_classes(teacher: nn.Module, matcher: str) -> ClassMap:
    """The classes by which a teacher's predictions are compared; ConfigError for one that makes none."""
    if teacher.classes is None:
        raise ConfigError(
            f"MODEL.DISTILL.MATCHERS: {matcher} pairs predictions, and MODEL.DISTILL.TEACHER.NAME "
            f"{type(teacher).__name__} makes none. Set MATCHERS to (), or name a teacher that detects."
        )
    return teacher.classes  # type: ignore[return-value]


class QueryMatcher(nn.Module):
    """Interface of matchers; the defaults add no group, need no assignment and pair nothing.

    Attributes:
        requires: what the detectors must give beside their usual output, see structures.py.
    """

    name: str = ""
    requires: frozenset[str] = frozenset()

    def extra_groups(self, knowledge: Knowledge, images: int) -> list[QueryGroup]:
        """Query groups that the student decodes beside its own, for a batch of ``images`` images."""
        return []

    def cost(self, student: StudentOutput, knowledge: Knowledge) -> Cost | None:
        """A matching to be solved with all others of the step; None when the pairs are known."""
        return None

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match | None:
        """The pairs; ``pairs`` is the solution of :meth:`cost`."""
        return None


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


def query_maps(teacher: nn.Module, student: nn.Module, matcher: str) -> dict[str, nn.Module]:
    """``content_projection`` and ``position_projection``, from the teacher's queries to the student's."""
    queries = _queries(network_of(teacher), matcher), _queries(student, matcher)
    return {"content_projection": content_map(*queries), "position_projection": position_map(*queries)}


def _queries(detector: nn.Module, matcher: str) -> nn.Module:
    if not isinstance(detector, DetrDetector):
        raise ConfigError(
            f"MODEL.DISTILL.MATCHERS: extra query groups need DETR-type queries, found {type(detector).__name__}. "
            f"Remove {matcher} from MATCHERS, or choose a DetrDetector."
        )
    return detector.queries
