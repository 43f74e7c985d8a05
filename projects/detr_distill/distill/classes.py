"""Class lists of teacher and student, matched by name."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tabulate import tabulate
from torch import Tensor

from ..checkpoint.class_names import names_twice, normal_names
from ..checkpoint.transformers_folder import UNNAMED
from ..errors import ConfigError
from ..structures.transfer import copy_to

logger = logging.getLogger(__name__)

NAMES_KEY = "MODEL.DISTILL.TEACHER.CLASS_NAMES"

# What stands in lists of classes for an index without a class, as in the 91 of COCO's DETRs: it names none.
_PLACEHOLDERS = ("N/A", "")
_COLUMNS = 3  # pairs in a row of the table
_ROWS = 40  # of the table at most


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

    def student_labels(self, shared: Tensor) -> Tensor:
        """Indices among the shared classes to the student's."""
        return shared if self.identical else self._on(shared.device)[0][shared]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """``student`` and ``teacher`` as tensors, and the teacher's class of every student class or -1."""
        if device not in self._tensors:
            # The backward pass keeps an index, which it may not of a tensor made in inference mode.
            with torch.inference_mode(False):
                student, teacher = torch.tensor(self.student), torch.tensor(self.teacher)
                table = torch.full((self.num_student,), -1).index_copy(0, student, teacher)
                self._tensors[device] = (copy_to(student, device), copy_to(teacher, device), copy_to(table, device))
        return self._tensors[device]


def match_classes(
    student_names: Sequence[str] | None,
    teacher_names: Sequence[str] | None,
    num_student: int,
    num_teacher: int,
    teacher_source: str = "its training set",
) -> ClassMap:
    """Pairs two class lists by name. A letter with an accent is one character however it was typed (NFC, NFD).

    Args:
        student_names, teacher_names: None where a data set that is not on this machine would have to say.
        num_student, num_teacher: number of classes that each network predicts.
        teacher_source: what ``teacher_names`` are from, or would be, for messages.

    Raises:
        ConfigError: names are missing, stand twice in a list, contradict the counts, or none is shared.
    """
    sides = (
        ("student", student_names, num_student, "its training set"),
        ("teacher", teacher_names, num_teacher, teacher_source),
    )
    for who, names, count, source in sides:
        if names is not None:
            _check_names(who, names, count, source, num_teacher)
    if student_names is None or teacher_names is None:
        _check_unknown(student_names, teacher_names, num_student, num_teacher, teacher_source)
        return same_classes(num_student)
    mine, theirs = normal_names(student_names), normal_names(teacher_names)
    if mine == theirs:
        return same_classes(num_student)
    unnamed = [name for name in theirs if UNNAMED.fullmatch(name) and name not in mine]
    if unnamed:
        raise ConfigError(
            f"The teacher's class names, from {teacher_source}, have {_short(unnamed)}, which name nothing. Name each "
            f"of its {num_teacher} classes in {NAMES_KEY}, in the teacher's order; 'N/A' stands for an index without a "
            "class."
        )
    index_of = {name: index for index, name in enumerate(theirs) if name not in _PLACEHOLDERS}
    shared = [(index, index_of[name]) for index, name in enumerate(mine) if name in index_of]
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


def report_pairing(classes: ClassMap, student_names: Sequence[str] | None, teacher_names: Sequence[str] | None) -> None:
    """Writes which classes are paired to the log, as a table, and which of the student's no teacher teaches."""
    if student_names is None or teacher_names is None:
        return
    logger.info("Classes of student and teacher, paired by name:\n%s", pairing_table(classes, student_names))
    untaught = [name for index, name in enumerate(student_names) if index not in classes.student]
    if untaught:
        logger.warning(
            "The teacher knows %d of the student's %d classes. It teaches nothing of %s; where these are classes of "
            "the teacher's under other names (%s), name its classes in %s as the student's data set does.",
            *(len(classes.student), len(student_names), _short(untaught), _short(teacher_names), NAMES_KEY),
        )


def pairing_table(classes: ClassMap, student_names: Sequence[str]) -> str:
    """A row for some of the student's classes: name, index in its list, index in the teacher's or "-"."""
    teacher = dict(zip(classes.student, classes.teacher, strict=True))
    cells = [(name, index, teacher.get(index, "-")) for index, name in enumerate(student_names)]
    width = _COLUMNS if len(cells) > _ROWS // 2 else 1
    rows = [list(itertools.chain(*cells[start : start + width])) for start in range(0, len(cells), width)]
    table = tabulate(rows[:_ROWS], headers=["class", "student", "teacher"] * width, disable_numparse=True)
    hidden = len(cells) - width * _ROWS
    return table + (f"\nand {hidden} more" if hidden > 0 else "")


def _check_names(who: str, names: Sequence[str], count: int, source: str, num_teacher: int) -> None:
    """Raises ConfigError where names stand twice or are not as many as the network's classes."""
    if len(names) != count:
        raise ConfigError(
            f"The {who} predicts {count} classes and {source} names {len(names)}: {_short(names)}. Set NUM_CLASSES "
            f"of the {who}'s configuration, or name the teacher's {num_teacher} in {NAMES_KEY}."
        )
    twice = [name for name in names_twice(names) if name not in _PLACEHOLDERS]
    if twice:
        remedy = (
            f"Name each of its {count} classes once in {NAMES_KEY}, in the teacher's order; 'N/A' stands for an index "
            "without a class."
            if who == "teacher"
            else "Give each category of its annotation file another name."
        )
        raise ConfigError(f"The {who}'s class names, from {source}, have {_short(twice)} more than once. {remedy}")


def _check_unknown(
    student_names: Sequence[str] | None,
    teacher_names: Sequence[str] | None,
    num_student: int,
    num_teacher: int,
    teacher_source: str,
) -> None:
    """Where one side's names are unknown: raises ConfigError, or warns that classes are paired by index."""
    if num_student != num_teacher:
        raise ConfigError(
            f"The teacher predicts {num_teacher} classes and the student {num_student}, and the names of "
            f"{'the student' if student_names is None else 'the teacher'}'s classes are unknown. Name the "
            f"teacher's classes in {NAMES_KEY} and register the student's data set."
        )
    if student_names is not None:
        raise ConfigError(
            f"The names of the teacher's {num_teacher} classes are unknown ({teacher_source} does not tell them), so "
            f"they cannot be paired with the student's. Name them in {NAMES_KEY}, in the teacher's order. If they are "
            f'the student\'s in the same order, set {NAMES_KEY} "{list(student_names)}"'
        )
    logger.warning(
        "The names of %s classes are unknown: %d classes are paired by index.",
        *("the student's" if teacher_names is not None else "student's and teacher's", num_student),
    )


def _short(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
