"""What all matchers share.

A matcher names extra query groups that the student must decode, and pairs student queries with teacher queries.
MixMatcher of D3ETR (2211.09768) is AdaptiveMatcher and FixedMatcher together.

Letters: B images, Ls and Lt decoder layers, C and P widths of student queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import nn

from ...config.keys import key
from ...config.ranges import Words
from ...detr.supervision.assignment import Cost
from ...errors import ConfigError
from ...plugin import Plugin
from ...registry import MATCHER_REGISTRY
from ...structures import PREDICTIONS, DecoderOutput, Pairs, QueryGroup
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..side import QUERIES, Side, check_side
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .query_exchange import content_map, position_map


@dataclass
class SharedGroup(QueryGroup):
    """A query group that the student decodes and that a teacher has decoded.

    Attributes:
        teacher_output: what the teacher's decoder made of the same queries.
    """

    teacher_output: DecoderOutput | None = None


@MATCHER_REGISTRY.interface
class QueryMatcher(Plugin):
    """Interface of matchers; the defaults add no group, need no assignment and pair nothing.

    Attributes:
        name: short, the suffix of the losses and what a loss's GROUPS may name.
        requires: what the detectors must give beside their usual output, see structures/.
        needs: what both sides must give, needs_of_teacher: what the teacher must, see side.py.
        finds_labels: it pairs the student's queries with objects, a :class:`LabelMatch`, and not with the teacher's
            queries, which losses of matched queries compare.
        teacher_queries_are_own: the pairs' teacher queries are the teacher's own, of which it knows the assignment.
        teacher_layer: see :func:`pair_layers`.
    """

    section = "MODEL.DISTILL"
    declares = ("name",)
    name: ClassVar[str]
    requires: frozenset[str] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    needs_of_teacher: frozenset[str] = frozenset()
    finds_labels: ClassVar[bool] = False
    teacher_queries_are_own: ClassVar[bool] = True

    teacher_layer: str = key(
        "aligned",
        'teacher layer of each student layer: `"aligned"`, the one at the same place, or `"last"` for all',
        Words("aligned", "last"),
        path="MODEL.DISTILL.TEACHER_LAYER",
    )

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return cls.read_keys(cfg)

    @classmethod
    def check_side(cls, side: Side, who: str, wanted: frozenset[str]) -> None:
        """Raises ConfigError where ``who``, "student" or "teacher", lacks something that this matcher compares."""
        check_side(side, who, wanted, cls.__name__, "MODEL.DISTILL.MATCHERS")

    @classmethod
    def adds_loss(cls, node: CfgNode) -> bool:
        """Whether its groups have a detection loss, so that it counts even where no loss compares its pairs."""
        return node.get("LOSS_WEIGHT", 0) > 0

    def extra_groups(self, knowledge: Knowledge, images: int) -> list[QueryGroup]:
        """Query groups that the student decodes beside its own, for a batch of ``images`` images."""
        return []

    def cost(self, student: StudentOutput, knowledge: Knowledge) -> Cost | None:
        """A matching to be solved with all others of the step; None when the pairs are known."""
        return None

    def forward(self, student: StudentOutput, knowledge: Knowledge, pairs: Pairs | None) -> Match | None:
        """The pairs; ``pairs`` is the solution of :meth:`cost`."""
        return None


class PredictionMatcher(QueryMatcher):
    """Pairs what both sides predict.

    Args:
        classes: by which the predictions are compared.
    """

    requires = frozenset({PREDICTIONS})

    @configurable
    def __init__(self, *, classes: ClassMap, **settings: Any):
        super().__init__(**settings)
        self.classes = classes

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        if teacher.classes is None:
            raise ConfigError(
                f"MODEL.DISTILL.MATCHERS: {cls.__name__} pairs predictions, and MODEL.DISTILL.TEACHER.NAME "
                f"{type(teacher).__name__} makes none. Set MATCHERS to (), or name a teacher that detects."
            )
        cls.check_side(student, "student", cls.requires)
        cls.check_side(teacher, "teacher", cls.requires)
        return {**super().from_config(cfg, student, teacher), "classes": teacher.classes}


def query_maps(teacher: Side, student: Side, matcher: str) -> dict[str, nn.Module]:
    """``content_projection`` and ``position_projection``, from the teacher's queries to the student's.

    Raises:
        ConfigError: one side has no queries.
    """
    for side in (teacher, student):
        if side.queries is None or QUERIES not in side.gives:
            raise ConfigError(
                f"MODEL.DISTILL.MATCHERS: extra query groups need DETR-type queries, found {side.name}. "
                f"Remove {matcher} from MATCHERS, or choose a DetrDetector."
            )
    assert teacher.queries is not None and student.queries is not None
    return {
        "content_projection": content_map(teacher.queries, student.queries),
        "position_projection": position_map(teacher.queries, student.queries),
    }
