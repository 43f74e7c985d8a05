"""What somebody meant who wrote a key or a value as it cannot be: told in messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "keys of its own",
}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean ...?``, or nothing when no known name is close. Capitals do not count."""
    # Of names that differ in capitals alone any will do.
    lower = {key.lower(): key for key in known}
    if name.lower() in lower:
        return f" Did you mean {lower[name.lower()]}?"
    matches = difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)
    last = name.lower().rsplit(".", 1)[-1]
    matches += [key for key in lower if key.rsplit(".", 1)[-1] == last and key not in matches]
    return f" Did you mean {' or '.join(lower[key] for key in matches[:3])}?" if matches else ""


def unknown_key(name: str, known: Iterable[str]) -> str:
    """That a key is unknown, and what was meant; ``known`` are full names."""
    known = list(known)
    if name in known:
        *nodes, last = name.split(".")
        nested = ": {".join(nodes) + f": {{{last}: VALUE" + "}" * len(nodes)
        return f"unknown key '{name}', written with dots. In a file write {nested}."
    groups = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    return f"unknown key {name}.{suggest(name, [*known, *sorted(groups)])}"


def wrong_type(value: object, default: object) -> str:
    """What a key takes that was given a value of another type, and how that value would be written."""
    kind = next(words for kind, words in KINDS.items() if isinstance(default, kind))
    spelling = right_spelling(value, default)
    return f"{kind} is expected.{f' Write {spelling}.' if spelling else ''}"


def right_spelling(value: object, default: object) -> str:
    """How a value is written for a key with that default; empty where nobody can tell."""
    if isinstance(default, bool):
        meant = _BOOLS.get(str(value).strip().lower())
        return "" if meant is None else repr(meant)
    if isinstance(default, int | float):
        return _as_number(value, whole=isinstance(default, int))
    if isinstance(default, str):
        return "" if isinstance(value, dict) else _as_text(value)
    if isinstance(default, list | tuple) and not isinstance(value, dict):
        words = re.split(r"[,\s]+", value.strip("[]() ")) if isinstance(value, str) else [value]
        entries = tuple(_entry(word) for word in words if word != "")
        return f'"{entries!r}", a list in quotes'
    return ""


def _entry(word: object) -> object:
    """What a word of a list means: a number, or text without its quotes."""
    if not isinstance(word, str):
        return word
    if re.fullmatch(r"[+-]?\d+", word):
        return int(word)
    return float(word) if re.fullmatch(r"[+-]?\d*\.\d*", word) and word.strip("+-.") else word.strip("'\"")


def _as_number(value: object, whole: bool) -> str:
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return ""
    if isinstance(value, bool) or (whole and not number.is_integer()):
        return ""
    return str(int(number)) if whole else repr(number)


def _as_text(value: object) -> str:
    return f"\"'{value}'\" on a command line, '{value}' in a file; a folder or file as ./{value}"
