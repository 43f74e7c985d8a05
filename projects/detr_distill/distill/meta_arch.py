"""The training step of distillation. It names no method: the configuration says teacher, matchers and losses."""

from __future__ import annotations

import dataclasses

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..detr.supervision.assignment import Cost, solve_assignments
from ..errors import ConfigError
from ..iteration import current_iteration
from ..registry import LOSS_REGISTRY, MATCHER_REGISTRY, TEACHER_REGISTRY, look_up
from .balance import ShareBalance
from .knowledge import Knowledge
from .losses.base import DistillLoss, matcher_names
from .match import Match
from .matchers.base import QueryMatcher
from .schedule import Schedule, scale_student
from .settings import check_settings
from .students.base import (
    StudentOutput,
    StudentStep,
    check_student,
    network_of,
    run_student,
    select_images,
    start_student,
)
from .students.second_run import fewer_regions, held_constant, without_traces


@META_ARCH_REGISTRY.register()
class DistillDetector(nn.Module):
    """A student that learns from ground truth and from a teacher; at inference it is the student alone.

    Args:
        student: any detector that ``run_student`` knows. teacher: see frozen.py.
        matchers: by name. losses: the distillation losses, by name. schedule: their course over the run.
        balance: steers their common weight in the first iterations; None: the weights are as configured.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        matchers: dict[str, QueryMatcher],
        losses: dict[str, DistillLoss],
        schedule: Schedule | None = None,
        balance: ShareBalance | None = None,
    ):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.matchers = nn.ModuleDict(matchers)
        self.losses = nn.ModuleDict(losses)
        self.schedule = schedule or Schedule()
        self.balance = balance
        wanted = [*(matcher.requires for matcher in matchers.values()), *(loss.requires for loss in losses.values())]
        self.capture: frozenset[str] = frozenset().union(*wanted)
        for loss in losses.values():
            loss.check_groups([matcher.name for matcher in matchers.values()])
            for who, detector in (("student", student), ("teacher", network_of(teacher))):
                loss.check_capture(getattr(detector, "decoder", detector), who)

    @classmethod
    def from_config(cls, cfg):
        check_settings(cfg)
        node = cfg.MODEL.DISTILL
        student = check_student(
            look_up(META_ARCH_REGISTRY, node.STUDENT_ARCHITECTURE, "MODEL.DISTILL.STUDENT_ARCHITECTURE")
        )(cfg)
        # What distillation adds must not move the random numbers that the student trains with.
        with torch.random.fork_rng():
            names = _names_in_use(cfg)
            teacher = look_up(TEACHER_REGISTRY, names["teacher"], "MODEL.DISTILL.TEACHER.NAME")(cfg, student)
            matchers = {name: look_up(MATCHER_REGISTRY, name, "MODEL.DISTILL.MATCHERS") for name in names["matchers"]}
            losses = {name: look_up(LOSS_REGISTRY, name, "MODEL.DISTILL.LOSSES") for name in names["losses"]}
            return {
                "student": student,
                "teacher": teacher,
                "matchers": {name: plugin(cfg, student, teacher) for name, plugin in matchers.items()},
                "losses": {name: plugin(cfg, student, teacher) for name, plugin in losses.items()},
                "schedule": Schedule.from_config(cfg),
                "balance": _build_balance(cfg) if losses else None,
            }

    @property
    def device(self) -> torch.device:
        return self.student.device  # type: ignore[return-value]

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """One training step's losses, or the student's detections.

        Args:
            batched_inputs: detectron2 dicts with ``image`` and, in training, ``instances``.

        Returns:
            The student's detection losses, those of extra groups (``loss_*_<group>``) and of its head on the teacher's
            maps (``loss_*_teacher``), the distillation losses (``loss_distill_*``) and those of their own layers,
            scalars to sum; or what the student returns.
        """
        if not self.training:
            return self.student(batched_inputs)
        matchers = list(self.matchers.values())
        step = start_student(self.student, batched_inputs)
        knowledge = self.teacher(step, self.capture)
        groups = [group for matcher in matchers for group in matcher.extra_groups(knowledge, len(batched_inputs))]  # type: ignore[operator]
        student = run_student(self.student, step, groups, self.capture)
        on_teacher = self._run_head_on_teacher(step, knowledge)

        costs = [matcher.cost(student, knowledge) for matcher in matchers]  # type: ignore[operator]
        pairs = solve_assignments(
            [
                *student.costs,
                *on_teacher.costs,
                *(cost for cost in costs if cost is not None),
                *self._teacher_costs(knowledge, batched_inputs),
            ]
        )
        solved = iter(pairs)
        losses = {**student.finish([next(solved) for _ in student.costs]), **knowledge.losses}
        teacher_losses = on_teacher.finish([next(solved) for _ in on_teacher.costs])
        losses.update({f"{name}_teacher": value for name, value in teacher_losses.items()})

        found = [
            matcher(student, knowledge, None if cost is None else next(solved))
            for matcher, cost in zip(matchers, costs, strict=True)
        ]
        matches = [match for match in found if match is not None]
        knowledge = dataclasses.replace(knowledge, assignment=next(solved, None))
        losses.update(self._distill(student, knowledge, matches, losses))
        return losses

    def _distill(
        self, student: StudentOutput, knowledge: Knowledge, matches: list[Match], others: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The distillation losses of this iteration; ``others`` are those that they are balanced with."""
        iteration = current_iteration()
        student = scale_student(student, self.schedule.student_share(iteration))
        losses: dict[str, Tensor] = {}
        for loss in self.losses.values():
            losses.update(loss(student, knowledge, matches))
        # What trains a loss's own layers alone is no distillation, whose weight and course it does not share.
        own = {name: losses.pop(name) for name in tuple(losses) if not name.startswith("loss_distill_")}
        if self.balance is not None:
            losses = self.balance(losses, others, iteration)
        factor = self.schedule.factor(iteration)
        return {**own, **{name: factor * value for name, value in losses.items()}}

    def _teacher_costs(self, knowledge: Knowledge, batched_inputs: list[dict]) -> list[Cost]:
        """The teacher's matching with the ground truth, where a loss asks for it and the teacher has one."""
        wanted = any(loss.needs_assignment for loss in self.losses.values())
        if knowledge.label_cost is None or not wanted:
            return []
        counts = [len(entry["instances"]) for entry in batched_inputs]
        return [Cost("ground truth, teacher", knowledge.label_cost, counts)]

    def _run_head_on_teacher(self, step: StudentStep, knowledge: Knowledge) -> StudentOutput:
        """The student's head on the teacher's maps, where it has any."""
        second = knowledge.second_run
        if second is None:
            return StudentOutput({})
        images = len(step.batched_inputs)
        step = select_images(self.student, dataclasses.replace(step, features=second.features), second.images)
        regions = fewer_regions(self.student, second.regions)
        traces = without_traces(self.student, len(step.batched_inputs) / images)
        with traces, regions, held_constant(self.student, not second.head_learns):
            return run_student(self.student, step, [], frozenset())


def _build_balance(cfg) -> ShareBalance | None:
    node = cfg.MODEL.DISTILL.BALANCE
    return ShareBalance(node.TARGET_SHARE, node.ITERATIONS, node.RANGE) if node.TARGET_SHARE else None


def _names_in_use(cfg) -> dict:
    """Names of the teacher, matchers and losses that have an effect.

    A loss of weight 0 is not built, nor is a matcher whose pairs and group nothing uses, nor a teacher without either:
    with every weight at zero the step is the plain student's, bit for bit.
    """
    node = cfg.MODEL.DISTILL
    for key in ("MATCHERS", "LOSSES"):
        if len(set(node[key])) < len(node[key]):
            raise ConfigError(f"MODEL.DISTILL.{key} is {list(node[key])}. Name each once.")
    nodes = {name: node.get(_node_name(name), CfgNode()) for name in node.LOSSES}
    losses = [
        name for name in node.LOSSES if look_up(LOSS_REGISTRY, name, "MODEL.DISTILL.LOSSES").is_active(nodes[name])
    ]
    groups = [
        matcher_names(nodes[name].get("GROUPS", ()))
        for name in losses
        if look_up(LOSS_REGISTRY, name, "MODEL.DISTILL.LOSSES").needs_pairs
    ]
    matchers = []
    for name in node.MATCHERS:
        matcher = look_up(MATCHER_REGISTRY, name, "MODEL.DISTILL.MATCHERS")
        compared = any(not used or matcher.name in used for used in groups)
        if compared or node.get(_node_name(name), {}).get("LOSS_WEIGHT", 0) > 0:
            matchers.append(name)
    needed = losses or matchers
    if needed and node.TEACHER.NAME in ("", "NoTeacher"):
        raise ConfigError(
            f"MODEL.DISTILL.TEACHER.NAME is '{node.TEACHER.NAME}', but MATCHERS {matchers} and LOSSES {losses} learn "
            "from a teacher. Name one, or set MATCHERS and LOSSES to ()."
        )
    teacher = node.TEACHER.NAME if needed else "NoTeacher"
    return {"teacher": teacher, "matchers": matchers, "losses": losses}


def _node_name(name: str) -> str:
    """PredictionLoss to PREDICTION_LOSS: the configuration node of a plug-in."""
    return "".join(f"_{letter}" if letter.isupper() and place else letter for place, letter in enumerate(name)).upper()
