"""Class lists: when two names are one, and which sets of a run name other classes than the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..checkpoint.class_names import normal_names
from ..errors import DataError, first
from .registration import class_names

_SHOWN = 5  # names of a list that a message shows, from the first difference on


def check_class_lists(cfg: CfgNode) -> None:
    """Compares the sets of ``DATASETS.TRAIN`` and ``DATASETS.TEST``; see :func:`compare_class_lists`."""
    sets = [("DATASETS.TRAIN", name) for name in cfg.DATASETS.TRAIN]
    compare_class_lists([*sets, *(("DATASETS.TEST", name) for name in cfg.DATASETS.TEST)])


def compare_class_lists(sets: Iterable[tuple[str, str]]) -> None:
    """Compares sets, each with the key that names it, with the first of them whose classes can be known.

    Raises:
        DataError: one names other classes, or the same in another order: a model would learn or be measured by the
            wrong ones. Both files and the lists are shown.
    """
    lists = [(f"{key} {name}", _source(name), class_names(name)) for key, name in sets]
    known = [(title, source, names) for title, source, names in lists if names is not None]
    for title, source, names in known[1:]:
        first_title, first_source, first = known[0]
        if normal_names(names) == normal_names(first):
            continue
        start = _first_difference(first, names)
        raise DataError(
            f"{first_title} and {title} have different class lists from class {start} on: "
            f"{_difference(first, names)}.\n"
            f"  {first_source}: {_show(first, start)}\n  {source}: {_show(names, start)}\n"
            "Give both annotation files the same categories in the same order of ids; a category may have no object."
        )


def _source(name: str) -> str:
    """A set with its annotation file, where it has one."""
    metadata = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog.list() else {}
    file = metadata.get("source") or metadata.get("json_file")
    return f"{name} ({file})" if file else name


def _first_difference(first: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(normal_names(first), normal_names(other), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(other)))


def _difference(first: Sequence[str], other: Sequence[str]) -> str:
    """What the second list lacks and has beside the first."""
    mine, theirs = normal_names(first), normal_names(other)
    lacking = [name for name in mine if name not in theirs]
    extra = [name for name in theirs if name not in mine]
    parts = [f"the second lacks {_quoted(lacking)}"] * bool(lacking) + [f"the second adds {_quoted(extra)}"] * bool(
        extra
    )
    return " and ".join(parts) or "the same names in another order"


def _quoted(names: Sequence[str]) -> str:
    return first(map(repr, names), _SHOWN)


def _show(names: Sequence[str], start: int) -> str:
    """A list, or of a long one what surrounds its entry ``start``."""
    if len(names) <= 2 * _SHOWN:
        return f"{list(names)}"
    begin = max(0, start - 1)
    shown = ", ".join(map(repr, names[begin : begin + _SHOWN]))
    return f"[{'..., ' if begin else ''}{shown}, ...] ({len(names)} in all)"
