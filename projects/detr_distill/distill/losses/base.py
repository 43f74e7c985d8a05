"""What all distillation losses share: which matches and layers they use, and how their terms are named."""

from __future__ import annotations

from collections.abc import Iterable

from detectron2.config import CfgNode
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import MATCHER_REGISTRY
from ..knowledge import Knowledge
from ..match import Match
from ..students.base import StudentOutput


class DistillLoss(nn.Module):
    """Interface of distillation losses.

    Args:
        key: configuration node, for messages. weight: of the whole loss, above 0.
        groups: matchers whose pairs are used, by class or short name; empty: all.
        layers: "all" or "last" student layers.

    Attributes:
        requires: what the decoders must capture. remedies: for each of these what helps where a decoder lacks it.
        needs_pairs: False for a loss that compares no queries.
        needs_assignment: True for a loss that reads ``Knowledge.assignment``.
    """

    requires: frozenset[str] = frozenset()
    remedies: dict[str, str] = {}
    needs_pairs = True
    needs_assignment = False

    def __init__(self, *, key: str, weight: float, groups: list[str], layers: str):
        super().__init__()
        if layers not in ("all", "last"):
            raise ConfigError(f"MODEL.DISTILL.{key}.LAYERS is '{layers}'. Known: 'all', 'last'.")
        self.key, self.weight, self.groups = key, weight, matcher_names(groups)
        self.layers = slice(None) if layers == "all" else slice(-1, None)

    def forward(self, student: StudentOutput, knowledge: Knowledge, matches: list[Match]) -> dict[str, Tensor]:
        """The weighted terms for every match in use: ``loss_distill_<term>_<matcher>[_<layer>]`` scalars."""
        losses = {}
        for match in matches:
            if self.groups and match.name not in self.groups:
                continue
            for term, per_layer in self.terms(student, knowledge, match).items():
                values = (self.weight * per_layer[self.layers]).unbind()
                for layer, value in enumerate(values):
                    suffix = "" if layer == len(values) - 1 else f"_{layer}"
                    losses[f"loss_distill_{term}_{match.name}{suffix}"] = value
        return losses

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """{term: (Ls,) loss of each student layer}."""
        raise TypeError(f"{type(self).__name__} does not define terms()")

    def check_groups(self, used: list[str]) -> None:
        """Raises ConfigError when ``groups`` names a matcher that is not in use, or none is."""
        unknown = [name for name in self.groups if name not in used]
        if unknown or (self.needs_pairs and not used):
            raise ConfigError(
                f"MODEL.DISTILL.{self.key}.GROUPS is {list(self.groups)} and the matchers in use give "
                f"{used or 'no pairs'}. Name matchers of MODEL.DISTILL.MATCHERS, or remove the loss."
            )

    def check_capture(self, decoder: nn.Module, who: str) -> None:
        """Raises ConfigError when the decoder of ``who``, "student" or "teacher", lacks what this loss compares."""
        missing = sorted(self.requires - getattr(decoder, "captures", frozenset()))
        if missing:
            name = type(self).__name__
            remedies = [f", or {self.remedies[capture]}" for capture in missing if capture in self.remedies]
            raise ConfigError(
                f"MODEL.DISTILL.LOSSES: {name} asks for {' and '.join(missing)}, which the {who}'s "
                f"{type(decoder).__name__} does not have. Remove {name} from the list{''.join(remedies)}."
            )

    @classmethod
    def is_active(cls, node: CfgNode) -> bool:
        """Whether the loss has any effect with the settings of its configuration node."""
        return node.get("WEIGHT", 1.0) != 0


def matcher_names(names: Iterable[str]) -> tuple[str, ...]:
    """Short names ("adaptive") of matchers given by short or class name ("AdaptiveMatcher")."""
    return tuple(MATCHER_REGISTRY.get(name).name if name in MATCHER_REGISTRY else name for name in names)
