"""What a value of the configuration may be."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from ..errors import ConfigError

# Of counts and sizes (pixels, channels, queries), whose arrays would fit no machine beyond.
LARGEST = 1_000_000
_NEAR = 999  # the largest end that is always said; one that nobody comes near only where it is passed


class Allowed(Protocol):
    """What a value may be."""

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is not allowed."""

    def in_words(self) -> str:
        """For a message and for docs/configs.md."""


class Range(NamedTuple):
    """Finite numbers from ``least`` to ``most``, both included, more than ``above`` and less than ``below``.

    ``odd``: whole odd numbers alone, as sizes of convolutions that keep their maps' size. ``whole``: whole numbers
    alone.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    odd: bool = False
    whole: bool = False

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is outside or no number."""
        # True is an int to Python, and no number to whoever wrote it.
        if isinstance(value, bool) or not isinstance(value, int | float) or not self._holds(value):
            far = isinstance(value, int | float) and _NEAR < self.most < value
            raise ConfigError(f"{key} is {value!r}. Give {f'{self.most} or less' if far else self.in_words()}.")
        if self.whole and not isinstance(value, int):
            raise ConfigError(f"{key} is {value!r}. Give a whole number, {self.in_words()}.")

    def _holds(self, value: float) -> bool:
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside and (not self.odd or value % 2 == 1)

    def in_words(self) -> str:
        """Such as ``0 or more``."""
        if self == FINITE:
            return "a finite number"
        if self.odd:
            return f"an odd number, {self.least} or more"
        if self.least > -math.inf and self.most <= _NEAR:
            return f"a number from {self.least} to {self.most}"
        first = f"{self.least} or more" if self.least > -math.inf else f"more than {self.above}"
        if self.most <= _NEAR:
            return f"{first}, and {self.most} at most"
        return f"{first}, and less than {self.below}" if self.below < math.inf else first


class Words(tuple[str | int, ...]):
    """One of some values: ``Words("kl", "mse")``, ``Words(32, 16, 8)``."""

    def __new__(cls, *words: str | int) -> Words:
        return super().__new__(cls, words)

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is another one."""
        if value not in self:
            raise ConfigError(f"{key} is {value!r}. Known: {', '.join(map(repr, self))}.")

    def in_words(self) -> str:
        """Such as ``"kl" or "mse"``."""
        quoted = [f'"{word}"' if isinstance(word, str) else str(word) for word in self]
        return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


class Text:
    """Any text but an empty one: a name that something is registered or called by."""

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is none."""
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{key} is {value!r}. Give {self.in_words()}.")

    def in_words(self) -> str:
        """What is expected."""
        return "a name"


class AnyText:
    """Any text, also an empty one."""

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is none."""
        if not isinstance(value, str):
            raise ConfigError(f"{key} is {value!r}. Give {self.in_words()}, such as '{value}'.")

    def in_words(self) -> str:
        """What is expected."""
        return "text in quotes"


class Each(NamedTuple):
    """A list: of ``length`` entries, or of ``least`` or more, each of which ``entry`` allows."""

    entry: Allowed
    length: int | None = None
    least: int = 1

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is no such list."""
        if not isinstance(value, list | tuple) or not self._has_length(len(value)):
            raise ConfigError(f"{key} is {value!r}. Give {self.in_words()}.")
        for entry in value:
            self.entry.check(f"An entry of {key}", entry)

    def _has_length(self, length: int) -> bool:
        return length >= self.least if self.length is None else length == self.length

    def in_words(self) -> str:
        """Such as ``a list of 4, each more than 0``."""
        count = f"of {self.length}" if self.length is not None else f"of {self.least} or more"
        return f"a list {count}, each {self.entry.in_words()}"


class Infinite(NamedTuple):
    """What ``finite`` allows, and infinity."""

    finite: Allowed

    def check(self, key: str, value: object) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is neither."""
        if value != math.inf:
            self.finite.check(key, value)

    def in_words(self) -> str:
        """Such as ``more than 0, or inf``."""
        return f"{self.finite.in_words()}, or inf"


FINITE = Range()
NOT_NEGATIVE = Range(0)
POSITIVE = Range(above=0)
SHARE = Range(0, most=1)
PROPER_SHARE = Range(above=0, most=1)
COUNT = Range(1, most=LARGEST, whole=True)
WHOLE = Range(0, most=LARGEST, whole=True)
IMAGES = Range(1, most=65_536, whole=True)
LAYERS = Range(1, most=1000, whole=True)
LAYERS_OR_NONE = Range(0, most=1000, whole=True)
# Iterations are the user's patience, and some write many for "never".
ITERATION = Range(1, most=2**31 - 1, whole=True)
PERIOD = Range(0, most=2**31 - 1, whole=True)
SEVERAL = Range(2, most=LARGEST, whole=True)
ODD = Range(1, most=999, odd=True)
