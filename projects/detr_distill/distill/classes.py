"""Class lists of teacher and student, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError

NAMES_KEY = "MODEL.DISTILL.TEACHER.CLASS_NAMES"


@dataclass(frozen=True)
class ClassMap:
    """Which teacher class is which student class.

    Attributes:
        student: indices of the shared classes in the student's list. teacher: the same classes in the teacher's list.
        identical: the two lists are equal, nothing has to be selected.
        num_student: length of the student's list.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    identical: bool
    num_student: int
    # By device: an index list is copied there once, and not in every step.
    _tensors: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def select_student(self, values: Tensor) -> Tensor:
        """(..., student classes) to (..., shared classes)."""
        return values if self.identical else values.index_select(-1, self._on(values.device)[0])

    def select_teacher(self, values: Tensor) -> Tensor:
        """(..., teacher classes) to (..., shared classes)."""
        return values if self.identical else values.index_select(-1, self._on(values.device)[1])

    def teacher_labels(self, labels: Tensor) -> Tensor:
        """Student class indices to the teacher's; -1 for a class that the teacher does not know."""
        return labels if self.identical else self._on(labels.device)[2][labels]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """``student`` and ``teacher`` as tensors, and the teacher's class of every student class or -1."""
        if device not in self._tensors:
            # The backward pass keeps an index, which it may not of a tensor made in inference mode.
            with torch.inference_mode(False):
                student, teacher = torch.tensor(self.student), torch.tensor(self.teacher)
                table = torch.full((self.num_student,), -1).index_copy(0, student, teacher)
                self._tensors[device] = (student.to(device), teacher.to(device), table.to(device))
        return self._tensors[device]


def match_classes(
    student_names: Sequence[str] | None,
    teacher_names: Sequence[str] | None,
    num_student: int,
    num_teacher: int,
    teacher_source: str = "its training set",
) -> ClassMap:
    """Pairs two class lists by name.

    Args:
        student_names, teacher_names: None where a data set that is not on this machine would have to say.
        num_student, num_teacher: number of classes that each network predicts.
        teacher_source: what ``teacher_names`` are from, for messages.

    Raises:
        ConfigError: names are missing and counts differ, names and counts contradict each other, or no name is shared.
    """
    sides = (
        ("student", student_names, num_student, "its training set"),
        ("teacher", teacher_names, num_teacher, teacher_source),
    )
    for who, names, count, source in sides:
        if names is not None and len(names) != count:
            raise ConfigError(
                f"The {who} predicts {count} classes and {source} names {len(names)}: {_short(names)}. Set NUM_CLASSES "
                f"of the {who}'s configuration, or name the teacher's {num_teacher} in {NAMES_KEY}."
            )
    if student_names is None or teacher_names is None:
        if num_student != num_teacher:
            raise ConfigError(
                f"The teacher predicts {num_teacher} classes and the student {num_student}, and the names of "
                f"{'the student' if student_names is None else 'the teacher'}'s classes are unknown. Name the "
                f"teacher's classes in {NAMES_KEY} and register the student's data set."
            )
        return same_classes(num_student)
    if list(student_names) == list(teacher_names):
        return same_classes(num_student)
    index_of = {name: index for index, name in enumerate(teacher_names)}
    shared = [(index, index_of[name]) for index, name in enumerate(student_names) if name in index_of]
    if not shared:
        raise ConfigError(
            f"The teacher's classes ({_short(teacher_names)}) and the student's ({_short(student_names)}) share no "
            "name. Take a teacher trained on the student's classes, or name the teacher's classes as the student's "
            f"data set does in {NAMES_KEY}."
        )
    student, teacher = zip(*shared, strict=True)
    return ClassMap(student, teacher, identical=False, num_student=num_student)


def same_classes(count: int) -> ClassMap:
    """Two equal lists of ``count`` classes."""
    everything = tuple(range(count))
    return ClassMap(everything, everything, identical=True, num_student=count)


def _short(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
