"""Command lines whose flags may stand anywhere among KEY VALUE pairs."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence

KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def flags_first(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The command line with its flags before the KEY VALUE pairs, wherever they were typed."""
    flags: list[str] = []
    rest: list[str] = []
    remaining = list(argv)
    while remaining:
        word = remaining.pop(0)
        action = parser._option_string_actions.get(word.split("=")[0])
        target = rest if action is None else flags
        target.append(word)
        if action is not None and action.nargs != 0 and "=" not in word and remaining:
            flags.append(remaining.pop(0))
    return flags + rest


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The KEY VALUE pairs that may stand among the flags; see :func:`flags_first`."""
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="any key of the configuration, with its value"
    )


def keys_apart(words: Sequence[str], opts: Sequence[str]) -> tuple[list[str], list[str]]:
    """An option's own words, and KEY VALUE with what an option of several words has taken of them."""
    own = list(itertools.takewhile(lambda word: not KEY.fullmatch(word), words))
    return own, [*words[len(own) :], *opts]
