"""What travels from teachers to matchers and losses.

Letters: B images, C channels, Lt teacher layers, Qt teacher queries, G objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from ..structures import DecoderOutput, GroundTruth, Memory, Pairs, QueryGroup
from ..structures.levels import memory_maps
from .match import Match


class _Selectable(Protocol):
    def select(self, images: slice) -> Any: ...


@dataclass
class SecondRun:
    """Maps for the student's head beside its own.

    Attributes:
        features: in the student's own form, by its own names. images: those of the batch that are used.
        regions: part of the regions that a two-stage head samples. head_learns: whether the head's own weights learn
            from them, or the teacher alone.
    """

    features: dict[str, Tensor]
    images: slice = field(default_factory=lambda: slice(None))
    regions: float = 1.0
    head_learns: bool = True


@dataclass
class Knowledge:
    """What a teacher knows of a batch, detached.

    Attributes:
        features: name -> (B, C, height, width).
        output: the teacher's decoder output with logits in the teacher's own classes; None for a teacher without one.
        queries: the teacher's query group, width of the teacher.
        label_cost: (Lt, B, Qt, G) the teacher's own matching cost with the ground truth, or a function that gives it,
            the same in every call; None without labels. Read it by :meth:`matching_cost`.
        assignment: its solution, the teacher's positives and their objects; None where no loss asks for it.
        memory: the encoder's output. ground_truth: with labels in the teacher's classes, -1 for one that it does not
            know. Both are None for a teacher without them.
        second_run: what the student's head detects on too, with its full loss (``loss_*_teacher``); None: nothing.
        counts: how many of the queries of ``output`` each image has, those behind are padding (host integers); None:
            all.
        decode: the teacher's decoder on another query group of its own kind and width; None: it has none.
        extra: outputs of such groups, by name.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    output: DecoderOutput | None = None
    queries: QueryGroup | None = None
    label_cost: Tensor | Callable[[], Tensor] | None = None
    assignment: Pairs | None = None
    memory: Memory | None = None
    ground_truth: GroundTruth | None = None
    second_run: SecondRun | None = None
    counts: list[int] | None = None
    decode: Callable[[QueryGroup], DecoderOutput] | None = None
    extra: dict[str, DecoderOutput] = field(default_factory=dict)

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """All maps by name: the features, and of an encoder's memory ``memory0``, ``memory1``, ..."""
        return {**self.features, **memory_maps(self.memory)}

    def select(self, images: slice) -> Knowledge:
        """What is known of some of the images, as losses read it."""

        def part(value: _Selectable | None) -> Any:
            return None if value is None else value.select(images)

        return Knowledge(
            features={name: values[images] for name, values in self.features.items()},
            output=part(self.output),
            queries=self.queries,
            label_cost=None if self.label_cost is None else lambda: self._known_cost()[:, images],
            assignment=part(self.assignment),
            memory=part(self.memory),
            ground_truth=part(self.ground_truth),
            counts=None if self.counts is None else self.counts[images],
            extra={name: output.select(images) for name, output in self.extra.items()},
        )

    def matching_cost(self) -> Tensor | None:
        """``label_cost`` as a tensor; computed where it is asked for, which not every recipe does."""
        return None if self.label_cost is None else self._known_cost()

    def _known_cost(self) -> Tensor:
        assert self.label_cost is not None
        return self.label_cost if isinstance(self.label_cost, Tensor) else self.label_cost()

    def output_of(self, match: Match) -> DecoderOutput:
        """What the queries of a match's teacher group became."""
        output = self.output if match.teacher_group == "own" else self.extra[match.teacher_group]
        assert output is not None
        return output
