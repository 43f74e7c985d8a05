"""What a number of the configuration may be."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import ConfigError


class Range(NamedTuple):
    """Finite numbers from ``least`` to ``most``, both included, more than ``above`` and less than ``below``.

    ``odd``: whole odd numbers alone, as sizes of convolutions that keep their maps' size.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    odd: bool = False

    def check(self, key: str, value: float) -> None:
        """Raises ConfigError where ``value``, the setting of ``key``, is outside or no number."""
        if not isinstance(value, int | float) or not self._holds(value):
            raise ConfigError(f"{key} is {value!r}. Give {self._in_words()}.")

    def _holds(self, value: float) -> bool:
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside and (not self.odd or value % 2 == 1)

    def _in_words(self) -> str:
        if self.odd:
            return f"an odd number, {self.least} or more"
        if self.least > -math.inf and self.most < math.inf:
            return f"a number from {self.least} to {self.most}"
        first = f"{self.least} or more" if self.least > -math.inf else f"more than {self.above}"
        if self.most < math.inf:
            return f"{first}, and {self.most} at most"
        return f"{first}, and less than {self.below}" if self.below < math.inf else first


NOT_NEGATIVE = Range(0)


POSITIVE = Range(above=0)


SHARE = Range(0, most=1)


COUNT = Range(1)


ODD = Range(1, odd=True)
