"""The fields of annotation entries: what each must be, other spellings of it that are read, and what is wrong.

A field is looked at as a column, the values of one key in all entries: where all have the type that COCO gives it,
which one pass in C tells, nothing is done for each entry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import DataError, first

NAMED = 5  # faulty entries that a message lists

LARGEST_SIDE = 1_000_000  # pixels of an image
_EXACT = 2**53  # whole numbers beyond are not exact as floating point
_NOUNS = {"images": "image", "annotations": "annotation", "categories": "category"}
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "": 0}


def short(value: Any, length: int = 120) -> str:
    """A value as a message shows it."""
    return cut(ascii(value) if isinstance(value, str) and not is_text(value) else repr(value), length)


def cut(text: str, length: int = 40) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def entry_name(section: str, item: Any, number: int) -> str:
    """An entry as a message names it: by its id, else by its place, counted from 1."""
    noun = _NOUNS[section]
    known = isinstance(item, dict) and type(item.get("id")) in (int, str)
    return f"{noun} {cut(str(item['id']))}" if known else f"{noun} number {number + 1}"


@dataclass
class Findings:
    """What is wrong with the entries of a file, and what was read in spite of its form: counted by kind.

    Attributes:
        path: the file. faults, notes: kind -> number of entries, and the first few in words.
    """

    path: str
    faults: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    notes: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def fault(self, kind: str, name: str, *values: Any) -> None:
        """Something wrong with the entry ``name``, whose values tell what."""
        _count(self.faults, kind, name, values)

    def note(self, kind: str, name: str, *values: Any) -> None:
        """The first value was read as the second, or left out."""
        _count(self.notes, kind, name, values)

    def stop_at_faults(self) -> None:
        """Raises one ``DataError`` with all that was found wrong so far."""
        if self.faults:
            raise DataError(
                f"Annotation file {self.path} cannot be used:\n{_lines(self.faults)}\nCorrect these entries, or take "
                "them out of the file."
            )

    def warnings(self) -> list[str]:
        """One sentence for each kind of note."""
        return [f"Annotation file {self.path}: {line.strip()}" for line in _lines(self.notes).splitlines()]


def _count(found: dict[str, tuple[int, list[str]]], kind: str, name: str, values: tuple) -> None:
    count, examples = found.get(kind, (0, []))
    if count < NAMED:
        examples.append(f"{name}: {' as '.join(map(short, values))}" if values else name)
    found[kind] = (count + 1, examples)


def _lines(found: dict[str, tuple[int, list[str]]]) -> str:
    return "\n".join(
        f"  {kind} ({count}): {first(examples, NAMED, count)}" for kind, (count, examples) in found.items()
    )


@dataclass(frozen=True)
class Field:
    """A key of the entries of a section.

    Attributes:
        expected: what its value must be, in words. plain: types that are taken without a look.
        convert: makes the value of another form of it; raises ``ValueError`` or ``OverflowError`` where there is none.
        default: what a missing or null value means; ``None``: it is needed.
        fits: whether a column of plain values is right.
    """

    section: str
    key: str
    expected: str
    plain: frozenset[type]
    convert: Callable[[Any], Any]
    default: Any = None
    fits: Callable[[list], bool] = lambda values: True

    def read(self, items: list[dict], findings: Findings) -> list:
        """The column; entries that had another form of a value get the value, in place. Faults go to ``findings``."""
        key = self.key
        column = [item.get(key) for item in items]
        if set(map(type, column)) <= self.plain and self.fits(column):
            return column
        for number, (item, value) in enumerate(zip(items, column, strict=True)):
            if value is None and self.default is not None:
                column[number] = item[key] = self.default
            elif not (type(value) in self.plain and self.fits([value])):
                column[number] = self._convert(item, value, number, findings)
        return column

    def _convert(self, item: dict, value: Any, number: int, findings: Findings) -> Any:
        name = entry_name(self.section, item, number)
        if self.key not in item:
            findings.fault(f"entries of {self.section!r} without {self.key!r}", name, item)
            return None
        try:
            item[self.key] = result = self.convert(value)
        except (ValueError, OverflowError):
            kind = f"entries of {self.section!r} whose {self.key} is not {self.expected}"
            findings.fault(kind, name, value)
            return None
        if type(result) is type(value) and result == value:
            return result
        kind = f"entries of {self.section!r} whose {self.key} was written in another form"
        findings.note(kind, name, value, result)
        return result


def is_text(value: str) -> bool:
    """False for half a surrogate pair, which no file name and no terminal takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_whole(value: Any) -> int:
    """A whole number, also written as 7.0 or "7"; not one that floating point has rounded."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value)
    number = to_number(value)
    if not abs(number) < _EXACT or int(number) != number:
        raise ValueError
    return int(number)


def to_id(value: Any) -> int | str:
    """An id of an image or annotation: a whole number, or a text that is none ("007" is not 7)."""
    if not isinstance(value, str):
        return to_whole(value)
    if not value or not is_text(value):
        raise ValueError
    return int(value) if value.isascii() and value.isdigit() and (value == "0" or value[0] != "0") else value


def to_side(value: Any) -> int:
    """A number of pixels."""
    side = to_whole(value)
    if not 0 < side <= LARGEST_SIDE:
        raise ValueError
    return side


def to_flag(value: Any) -> int:
    """0 or 1, also as text or truth value."""
    if isinstance(value, str):
        value = _FLAGS.get(value.strip().lower(), value)
    whole = int(value) if isinstance(value, bool) else to_whole(value)
    if whole not in (0, 1):
        raise ValueError
    return whole


def to_number(value: Any) -> float:
    """A number, also written as text; NaN and infinity are numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, str) and "_" in value:  # Python's own spelling of thousands
        raise ValueError
    return float(value)


def to_box(value: Any) -> list[float]:
    """Four finite numbers."""
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError
    box = [to_number(part) for part in value]
    if not all(map(math.isfinite, box)):
        raise ValueError
    return box


def to_text(value: Any) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise ValueError
    return value


def are_texts(values: list) -> bool:
    """Whether all texts are neither blank nor broken: their joined form tells for most columns."""
    return all(value.strip() for value in values) and is_text("".join(values))


def are_sides(values: list[int]) -> bool:
    """Whether all are numbers of pixels that an image may have."""
    return not values or (min(values) > 0 and max(values) <= LARGEST_SIDE)


def are_boxes(values: list[list]) -> bool:
    """Whether all lists are four finite numbers each."""
    if set(map(len, values)) - {4}:
        return False
    flat = list(itertools.chain.from_iterable(values))
    return not set(map(type, flat)) - {int, float} and are_numbers(flat) and bool(np.isfinite(flat).all())


def are_numbers(values: list[int | float]) -> bool:
    """False where a whole number is larger than floating point goes."""
    try:
        np.array(values, dtype=np.float64)
    except OverflowError:
        return False
    return True
