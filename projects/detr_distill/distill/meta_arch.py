"""The training step of distillation. It names no method: the configuration says teacher, matchers and losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config.keys import check_keys
from ..detr.preprocess import read_ground_truth
from ..detr.supervision.assignment import Cost
from ..detr.supervision.matchings import Matching, Matchings
from ..iteration import trainer_iteration
from ..structures import PREDICTIONS, QueryGroup
from ..structures.fixed_batch import share_object_count
from .balance import ShareBalance
from .build import build_parts, check_parts
from .knowledge import Knowledge
from .losses.base import DistillLoss
from .match import Match
from .matchers.base import QueryMatcher, SharedGroup
from .pseudo_labels import PseudoLabels
from .schedule import Schedule, scale_student
from .side import MAPS, MEMORY
from .students.base import StudentOutput, StudentStep, student_of, take_images
from .students.second_run import fewer_regions, held_constant, without_traces
from .teachers.base import Teacher
from .unlabeled import as_teacher_sees, divide


@META_ARCH_REGISTRY.register()
class DistillDetector(nn.Module):
    """A student that learns from ground truth and from a teacher; at inference it is the student alone.

    Args:
        student: any detector for which a ``Student`` is registered. teacher: built beside it.
        matchers, losses: by name. schedule: course of the losses over the run.
        balance: steers their common weight in the first iterations; None: the weights are as configured.
        unlabeled_weight: factor of the distillation losses on images without labels.
        pseudo_labels: makes objects of these images for the detection loss; None: they have none.
        solver: of the matchings, see detr/supervision/solver.py.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: Teacher,
        matchers: Mapping[str, QueryMatcher],
        losses: Mapping[str, DistillLoss],
        schedule: Schedule | None = None,
        balance: ShareBalance | None = None,
        unlabeled_weight: float = 1.0,
        pseudo_labels: PseudoLabels | None = None,
        solver: str = "auto",
    ):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.matchers = nn.ModuleDict(dict(matchers))
        self.losses = nn.ModuleDict(dict(losses))
        self.schedule = schedule or Schedule()
        self.balance = balance
        self.unlabeled_weight = unlabeled_weight
        self.pseudo_labels = pseudo_labels
        self.solver = solver
        self._runner = student_of(student)
        # The same objects, typed: a dictionary of modules does not know their class.
        self._matchers, self._losses = list(matchers.values()), list(losses.values())
        wanted = [*(matcher.requires for matcher in self._matchers), *(loss.requires for loss in self._losses)]
        self.capture: frozenset[str] = frozenset().union(*wanted)
        for loss in self._losses:
            loss.check_matchers(self._matchers)
        self._compares_maps = any({MAPS, MEMORY} & (loss.needs | loss.needs_of_teacher) for loss in self._losses)
        check_parts(self._runner, teacher, self._matchers, self._losses)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_keys(cfg, "MODEL.DISTILL")
        return build_parts(cfg)

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict], iteration: int | None = None) -> dict[str, Tensor] | list[dict]:
        """One training step's losses, or the student's detections.

        Args:
            batched_inputs: detectron2 dicts with ``image`` and, in training, ``instances``, which the last images of a
                batch may lack: these are not labelled. A teacher looks at ``teacher_image`` where there is one.
            iteration: of the run, from 0; None: detectron2's trainer says it, outside of one it is unknown.

        Returns:
            The student's detection losses, those of extra groups (``loss_*_<group>``) and of its head on the teacher's
            maps (``loss_*_teacher``), the distillation losses (``loss_distill_*``) and those of their own layers,
            scalars to sum; or what the student returns.

        Raises:
            ConfigError: a part needs the iteration and it is unknown.
        """
        if not self.training:
            return self.student(batched_inputs)
        step = self._start(batched_inputs, iteration)
        seen = as_teacher_sees(step)
        if self._compares_maps:
            seen = self._runner.shown_by_maps(seen)
        wanted = self.capture if self.pseudo_labels is None else self.capture | {PREDICTIONS}
        knowledge, groups = self._extra_groups(self.teacher(seen, wanted), len(batched_inputs))
        matchings = Matchings(self.solver)
        supervised = step if self.pseudo_labels is None else self.pseudo_labels(step, knowledge)
        student = self._runner.finish(supervised, groups, self.capture, matchings)
        student = dataclasses.replace(student, step=step)  # distillation knows which images were labelled
        on_teacher = self._run_head_on_teacher(step, knowledge, matchings)
        handles = [_add(matchings, matcher.cost(student, knowledge)) for matcher in self._matchers]
        assignment = _add(matchings, self._teacher_cost(step, knowledge))
        matchings.solve()

        losses = student.losses()
        losses.update({f"{name}_teacher": value for name, value in on_teacher.losses().items()})
        pairs = [None if handle is None else handle.pairs for handle in handles]
        found = [matcher(student, knowledge, p) for matcher, p in zip(self._matchers, pairs, strict=True)]
        knowledge = dataclasses.replace(knowledge, assignment=None if assignment is None else assignment.pairs)
        losses.update(self._distill(student, knowledge, [match for match in found if match is not None], losses))
        return losses

    def _start(self, batched_inputs: list[dict], iteration: int | None) -> StudentStep:
        # Before the network runs: a copy to the device waits for the work that was queued ahead of it.
        ground_truth = read_ground_truth(batched_inputs, self.device, needs_labels=False)
        ground_truth.check_order()
        ground_truth = share_object_count(ground_truth)
        step = self._runner.start(batched_inputs)
        iteration = trainer_iteration() if iteration is None else iteration
        return self._runner.place(dataclasses.replace(step, ground_truth=ground_truth, iteration=iteration))

    def _extra_groups(self, knowledge: Knowledge, images: int) -> tuple[Knowledge, list[QueryGroup]]:
        """What the matchers have the student decode, and the knowledge with what the teacher made of the same."""
        groups = [group for matcher in self._matchers for group in matcher.extra_groups(knowledge, images)]
        shared = {group.name: group.teacher_output for group in groups if isinstance(group, SharedGroup)}
        extra = {name: output for name, output in shared.items() if output is not None}
        return dataclasses.replace(knowledge, extra=extra), groups

    def _teacher_cost(self, step: StudentStep, knowledge: Knowledge) -> Cost | None:
        """The teacher's matching with the ground truth, where a loss asks for it and the teacher has one."""
        wanted = any(loss.needs_assignment for loss in self._losses)
        cost = knowledge.matching_cost() if wanted else None
        if cost is None:
            return None
        truth = step.ground_truth
        assert truth is not None
        return Cost("ground truth, teacher", cost, truth.counts, truth.device_counts)

    def _run_head_on_teacher(self, step: StudentStep, knowledge: Knowledge, matchings: Matchings) -> StudentOutput:
        """The student's head on the teacher's maps, where it has any."""
        second = knowledge.second_run
        if second is None:
            return StudentOutput({})
        part = take_images(self._runner, step, second.images)
        maps = {name: values[second.images] for name, values in second.features.items()}
        traces = without_traces(self.student, step.iteration, len(part.batched_inputs) / len(step.batched_inputs))
        regions = fewer_regions(self.student, second.regions)
        with traces, regions, held_constant(self.student, not second.head_learns):
            return self._runner.finish(part, [], frozenset(), matchings, maps)

    def _distill(
        self, student: StudentOutput, knowledge: Knowledge, matches: list[Match], others: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The distillation losses of this iteration; ``others`` are those that they are balanced with."""
        iteration = None if student.step is None else student.step.iteration
        student = scale_student(student, self.schedule.student_share(iteration))
        losses: dict[str, Tensor] = {}
        for part in divide(student, knowledge, matches):
            for loss in self._losses:
                losses.update(part.distil(loss, self.unlabeled_weight))
        # What trains a loss's own layers alone is no distillation, whose weight and course it does not share.
        own = {name: losses.pop(name) for name in tuple(losses) if not name.startswith("loss_distill_")}
        if self.balance is not None:
            losses = self.balance(losses, others, iteration)
        factor = self.schedule.factor(iteration)
        if factor != 1:
            losses = {name: factor * value for name, value in losses.items()}
        return {**own, **losses}


def _add(matchings: Matchings, cost: Cost | None) -> Matching | None:
    return None if cost is None else matchings.add(cost)
