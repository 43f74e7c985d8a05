"""What all matchers share.

A matcher names extra query groups that the student must decode, and pairs student queries with teacher queries.
MixMatcher of D3ETR (2211.09768) is AdaptiveMatcher and FixedMatcher together.

Letters: B images, C and P widths of student queries.
"""

from __future__ import annotations

from torch import nn

from ...detr import DetrDetector
from ...detr.supervision.assignment import Cost
from ...errors import ConfigError
from ...structures import Pairs, QueryGroup
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput, network_of
from .query_exchange import content_map, position_map


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
        requires: what the detectors must give beside their usual output, see structures/tensors.py.
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
