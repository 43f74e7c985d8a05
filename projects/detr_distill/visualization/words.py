"""Words in pictures: names in any script, in a font that has their characters, or spelled out where none has."""

from __future__ import annotations

import logging
import unicodedata
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.font_manager import findfont, fontManager, get_font

logger = logging.getLogger(__name__)

FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and others
LONGEST = 40  # characters of a name


def drawable(name: str) -> str:
    r"""A name as it can be drawn: on one line, not too long, characters that no font has as ``\u732b``."""
    if len(name) > LONGEST:
        name = name[: LONGEST - 1] + "…"
    lacking = [character for character in name if not character.isspace() and not _font_of(character)]
    if lacking:
        _say_lacking(name, lacking[0])
    return "".join(" " if c.isspace() else c if c not in lacking else _spelled(c) for c in name)


def style(words: str) -> dict[str, Any]:
    """Arguments of a matplotlib text that draw words as they stand, each character in a font that has it."""
    families = dict.fromkeys([FONT, *(_font_of(character) for character in words)])
    return {"fontfamily": [family for family in families if family], "parse_math": False}


def font_file(words: str) -> str:
    """Path of one font for words that are :func:`drawable`: the first that a character needs beside ``FONT``."""
    families = [family for family in map(_font_of, words) if family]
    return findfont(next((family for family in families if family != FONT), FONT))


@cache
def _font_of(character: str) -> str:
    """Family of a font that has a character: ``FONT``, or the first installed one; empty where none has."""
    if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"):  # no characters for a reader
        return ""
    if ord(character) in _characters(findfont(FONT)):
        return FONT
    for path in _installed():
        if ord(character) in _characters(path):
            if path not in {entry.fname for entry in fontManager.ttflist}:
                fontManager.addfont(path)
            return get_font(path).family_name
    return ""


@cache
def _installed() -> list[str]:
    # matplotlib's own list may be older than a font, and it has one of placeholders for every character.
    return sorted(font_manager.findSystemFonts())


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        font = get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a damaged file, or one of another format
        return frozenset()


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


@cache
def _say_lacking(name: str, character: str) -> None:
    """Once for a name."""
    logger.warning(
        "No installed font has all characters of the name %s: pictures show them as %s. Install one that has, such as "
        "Noto Sans CJK.",
        ascii(name), _spelled(character),
    )  # fmt: skip
