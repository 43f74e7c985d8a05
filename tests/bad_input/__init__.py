"""Bad inputs and the words that they are refused with, one module for each part of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One bad input: its name, a call that must raise (given an empty folder), and a regular expression of its error."""

    name: str
    call: Callable[[Path], object]
    words: str
