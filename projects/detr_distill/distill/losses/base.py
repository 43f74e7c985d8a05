"""What all distillation losses share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE
from ...plugin import Plugin
from ...registry import LOSS_REGISTRY
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.base import QueryMatcher
from ..side import Side, check_side
from ..students.base import Student, StudentOutput
from ..teachers.base import Teacher


@LOSS_REGISTRY.interface
class DistillLoss(Plugin):
    """Compares what a student gives with what a teacher knows.

    A loss that compares matched queries inherits from :class:`PairLoss`, one on maps from :class:`MapLoss`.

    Attributes:
        requires: what both networks must keep beside their usual output, see structures/.
        needs: what both sides must give, needs_of_teacher: what the teacher must, see side.py.
        remedies: for each of these what helps where a side lacks it.
        needs_pairs: it compares matched queries. needs_found_labels: it learns from objects that a matcher found.
        unlabeled_alone: it learns from images without labels, and nothing from others.
        needs_assignment: it reads ``Knowledge.assignment``.
        needs_labels: it reads the objects, and says nothing of an image without labels.
    """

    section = "MODEL.DISTILL"
    hint = " A loss of matched queries, with terms(), inherits from detr_distill.distill.losses.pair_loss.PairLoss."
    requires: frozenset[str] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    needs_of_teacher: ClassVar[frozenset[str]] = frozenset()
    remedies: ClassVar[dict[str, str]] = {}
    needs_pairs: ClassVar[bool] = False
    needs_found_labels: ClassVar[bool] = False
    unlabeled_alone: ClassVar[bool] = False
    needs_assignment: bool = False
    needs_labels: bool = False

    weight: float = key(1.0, "of the whole loss; 0 builds nothing", NOT_NEGATIVE)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student, teacher: Teacher) -> dict[str, Any]:
        cls.check_side(student, "student", cls.needs)
        cls.check_side(teacher, "teacher", cls.needs | cls.needs_of_teacher)
        return cls.read_keys(cfg)

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        """Whether the loss has any effect with the settings of its configuration node."""
        return node.get("WEIGHT", 1.0) != 0

    @abstractmethod
    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """Scalars to sum: ``loss_distill_*``, and losses of its own layers alone under other names."""

    def check_matchers(self, matchers: Sequence[QueryMatcher]) -> None:
        """Raises ConfigError where the matchers in use do not give what this loss compares."""

    @classmethod
    def check_side(cls, side: Side, who: str, wanted: frozenset[str]) -> None:
        """Raises ConfigError where ``who``, "student" or "teacher", lacks something that this loss compares."""
        check_side(side, who, wanted, cls.__name__, "MODEL.DISTILL.LOSSES", cls.remedies)
