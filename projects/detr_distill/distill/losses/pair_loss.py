"""Losses on matched queries: which matches and layers they use, and how their terms are named.

Letters: Ls student layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...config.keys import key
from ...config.ranges import Words
from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ..classes import ClassMap
from ..knowledge import Knowledge
from ..match import LabelMatch, Match
from ..matchers.base import QueryMatcher
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher
from .base import DistillLoss


class PairLoss(DistillLoss):
    """Compares matched queries, layer by layer.

    Attributes:
        groups: matchers whose pairs are used, by class or short name; empty: all.
        layers: of the student, "all" or the "last".
    """

    needs_pairs: ClassVar[bool] = True

    groups: tuple[str, ...] = key((), 'matchers whose pairs it uses (`"adaptive"`, `"fixed"`); empty: all')
    layers: str = key("all", 'student layers: `"all"` or `"last"`', Words("all", "last"))

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.groups = matcher_names(self.groups)

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """The weighted terms for every match in use: ``loss_distill_<term>_<matcher>[_<layer>]`` scalars."""
        losses = {}
        for match in matches:
            if isinstance(match, LabelMatch) or (self.groups and match.name not in self.groups):
                continue
            for term, per_layer in self.terms(student, knowledge, match).items():
                chosen = per_layer if self.layers == "all" else per_layer[-1:]
                values = scaled(self.weight, chosen).unbind()
                for layer, value in enumerate(values):
                    suffix = "" if layer == len(values) - 1 else f"_{layer}"
                    losses[f"loss_distill_{term}_{match.name}{suffix}"] = value
        return losses

    @abstractmethod
    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """{term: (Ls,) loss of each student layer}."""

    def check_matchers(self, matchers: Sequence[QueryMatcher]) -> None:
        """Raises ConfigError where ``groups`` names a matcher that is not in use, or none is."""
        used = [matcher.name for matcher in matchers if not matcher.finds_labels]
        if not used or not set(self.groups) <= set(used):
            raise ConfigError(
                f"{self.key_name('groups')} is {list(self.groups)} and the matchers in use give "
                f"{used or 'no pairs'}. Name matchers of MODEL.DISTILL.MATCHERS, or remove the loss."
            )

    def uses(self, matcher: QueryMatcher) -> bool:
        """Whether the matcher's pairs are compared."""
        return not matcher.finds_labels and (not self.groups or matcher.name in self.groups)


class ScoredPairLoss(PairLoss):
    """Compares matched queries that count by what the teacher says of their classes.

    Args:
        classes: those that both sides know.
    """

    @configurable
    def __init__(self, *, classes: ClassMap, **settings: Any):
        super().__init__(**settings)
        self.classes = classes

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        return {**super().from_config(cfg, student, teacher), "classes": teacher.classes}


def matcher_names(names: Iterable[str]) -> tuple[str, ...]:
    """Short names ("adaptive") of matchers given by short or class name ("AdaptiveMatcher")."""
    return tuple(MATCHER_REGISTRY.get(name).name if name in MATCHER_REGISTRY else name for name in names)


def scaled(weight: float, values: Tensor) -> Tensor:
    """``weight * values``, without an operator where it is 1."""
    return values if weight == 1 else weight * values


def mean_over_pairs(values: Tensor, weight: Tensor) -> Tensor:
    """(..., B, M) values and pair weights to their mean over all pairs (...); 0 where there is none."""
    return (values * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)
