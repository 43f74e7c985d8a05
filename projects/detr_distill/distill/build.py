"""The parts of a distilling model, as the configuration names them; and the keys that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from ..config.keys import Key, declare
from ..errors import ConfigError
from ..plugin import Plugin
from ..registry import LOSS_REGISTRY, MATCHER_REGISTRY, TEACHER_REGISTRY, look_up
from .balance import ShareBalance
from .losses.base import DistillLoss
from .losses.pair_loss import matcher_names
from .matchers.base import QueryMatcher
from .pseudo_labels import PseudoLabels
from .schedule import Schedule
from .side import ASSIGNMENT
from .students.base import Student, check_student, student_of
from .teachers.base import Teacher, labels_images
from .unlabeled import check_unlabeled

NODE = "MODEL.DISTILL"

declare(
    __name__,
    {
        f"{NODE}.STUDENT_ARCHITECTURE": Key("DetrDetector", "the student's meta-architecture"),
        f"{NODE}.TEACHER.NAME": Key(
            "FrozenDetector",
            "class of the teacher: `FrozenDetector`, `PredictionsFile` (what a detector predicted beforehand), "
            "`EmaTeacher` (the student's moving average), `TransformersDetector`, `FoundationModel` (the "
            "maps of a network of timm), or a label encoder; empty: none, for controls",
        ),
        f"{NODE}.MATCHERS": Key(
            ("AdaptiveMatcher", "FixedMatcher"),
            "matchers in use; the two together are D3ETR's MixMatcher; `GeneralMatcher` (KD-DETR's random queries), "
            "`OverlapMatcher` (convolutional students)",
        ),
        f"{NODE}.LOSSES": Key(("PredictionLoss", "AttentionLoss"), "distillation losses in use"),
    },
)


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """Student, teacher, matchers, losses, schedule and balance.

    A loss of weight 0 is not built, nor is a matcher whose pairs and group nothing uses, nor a teacher without either:
    with every weight at zero the step is the plain student's, bit for bit.

    Raises:
        ConfigError: a name is not registered or stands twice, or there is no teacher for what learns from one.
    """
    architecture = look_up(META_ARCH_REGISTRY, cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE, f"{NODE}.STUDENT_ARCHITECTURE")
    detector = check_student(architecture)(cfg)
    student = student_of(detector)
    # What distillation adds must not move the random numbers that the student trains with.
    with torch.random.fork_rng():
        used = choose_plugins(cfg)
        teacher = look_up(TEACHER_REGISTRY, used.teacher, f"{NODE}.TEACHER.NAME")(cfg, student)
        losses = {name: loss(cfg, student, teacher) for name, loss in used.losses.items()}
        matchers = {name: matcher(cfg, student, teacher) for name, matcher in used.matchers.items()}
        pseudo_labels = PseudoLabels(cfg, student, teacher) if labels_images(cfg) else None
        check_unlabeled(cfg, student, teacher, matchers.values(), losses.values())
        return {
            "student": detector,
            "teacher": teacher,
            "matchers": matchers,
            "losses": losses,
            "schedule": Schedule.from_config(cfg),
            "balance": ShareBalance.from_config(cfg) if used.losses else None,
            "unlabeled_weight": cfg.MODEL.DISTILL.UNLABELED_WEIGHT,
            "pseudo_labels": pseudo_labels,
            "solver": cfg.MODEL.DETR.MATCHER.SOLVER,
        }


def check_parts(
    student: Student, teacher: Teacher, matchers: Sequence[QueryMatcher], losses: Sequence[DistillLoss]
) -> None:
    """Whether the sides give what matchers and losses ask for, however these were built.

    Raises:
        ConfigError: a side lacks something, or two matchers, whose losses would have the same names, are called alike.
    """
    names = [matcher.name for matcher in matchers]
    if len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"MODEL.DISTILL.MATCHERS are called {names}. Give each class a name of its own.")
    plugins: list[QueryMatcher | DistillLoss] = [*matchers, *losses]
    for plugin in plugins:
        plugin.check_side(student, "student", plugin.requires | plugin.needs)
        plugin.check_side(teacher, "teacher", plugin.requires | plugin.needs | plugin.needs_of_teacher)
    for loss in losses:
        if loss.needs_assignment:
            loss.check_side(teacher, "teacher", frozenset({ASSIGNMENT}))


@dataclass
class PluginsInUse:
    """The plug-ins that have an effect: the name of the teacher, and the classes of matchers and losses by name."""

    teacher: str
    matchers: dict[str, type[QueryMatcher]]
    losses: dict[str, type[DistillLoss]]


def choose_plugins(cfg: CfgNode) -> PluginsInUse:
    """What of the configured plug-ins has an effect; see :func:`build_parts`."""
    node = cfg.MODEL.DISTILL
    losses = _named(LOSS_REGISTRY, cfg, "LOSSES")
    losses = {name: loss for name, loss in losses.items() if loss.is_active(_node_of(cfg, loss))}
    groups = [matcher_names(_node_of(cfg, loss).get("GROUPS", ())) for loss in losses.values() if loss.needs_pairs]
    finding = any(loss.needs_found_labels for loss in losses.values())
    matchers = {
        name: matcher
        for name, matcher in _named(MATCHER_REGISTRY, cfg, "MATCHERS").items()
        if (finding if matcher.finds_labels else any(not used or matcher.name in used for used in groups))
        or matcher.adds_loss(_node_of(cfg, matcher))
    }
    learns = losses or matchers or labels_images(cfg)
    if (losses or matchers) and node.TEACHER.NAME in ("", "NoTeacher"):
        raise ConfigError(
            f"MODEL.DISTILL.TEACHER.NAME is '{node.TEACHER.NAME}', but MATCHERS {list(matchers)} and LOSSES "
            f"{list(losses)} learn from a teacher. Name one, or set MATCHERS and LOSSES to ()."
        )
    return PluginsInUse(node.TEACHER.NAME if learns else "NoTeacher", matchers, losses)


def _named(registry: Registry, cfg: CfgNode, key: str) -> dict[str, Any]:
    names = list(cfg.MODEL.DISTILL[key])
    if len(set(names)) < len(names):
        raise ConfigError(f"MODEL.DISTILL.{key} is {names}. Name each once.")
    return {name: look_up(registry, name, f"MODEL.DISTILL.{key}") for name in names}


def _node_of(cfg: CfgNode, plugin: type[Plugin]) -> CfgNode:
    """The configuration node of a plug-in; empty where it has none."""
    return reduce(lambda node, part: node.get(part, CfgNode()), plugin.node.split("."), cfg)
