"""docs/configs.md, made from the declarations of the keys: ``python tools/write_key_reference.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable

from .keys import PACKAGE, Key, declared_keys

HEAD = """# Configuration keys

What this project adds to detectron2's own keys, and one default that it changes. A run is described by a file under
`configs/`, then by `KEY VALUE` pairs on the command line, which override it. Values are read as Python literals: lists
and tuples in quotes, decimals for a key whose default is a decimal (`0.0`, not `0`). In a file a key stands once.

Values outside of what a key may be are refused, detectron2's own included (`config/detectron2_keys.py`). Keys of
detectron2 that nothing here reads, such as `TEST.AUG` or `TEST.PRECISE_BN`, are named at the start of a run that sets
them; `MODEL.KEYPOINT_ON` and `MODEL.LOAD_PROPOSALS` are refused.

This page is made from the code by `python tools/write_key_reference.py`: every key is declared once, beside the class
that reads it, with its default, what it may be, and its meaning. A test fails where page and code differ. A plug-in of
your own declares its keys in the same way ([extending.md](extending.md)).
"""
# Title, what stands under it, and the nodes that it holds.
SECTIONS = (
    ("Your own plug-ins", "", ("PLUGINS",)),
    ("Data", "", ("DATASETS", "DATALOADER", "INPUT")),
    ("Solver and evaluation", "", ("SOLVER", "TEST")),
    ("Backbones", "", ("MODEL.CONV_BACKBONE", "MODEL.TIMM", "MODEL.TORCHVISION")),
    ("Detector", "Read when the detector, or the student, is a `DetrDetector`.", ("MODEL.DETR",)),
    (
        "Detectors of transformers",
        "Read when the detector, or the student, is a `TransformersStudent`, which reads `MODEL.DETR.NUM_CLASSES`, "
        "`MODEL.DETR.LOSS` and `MODEL.DETR.MATCHER` too.",
        ("MODEL.TRANSFORMERS",),
    ),
    ("detectron2's detectors", "Beside detectron2's own keys.", ("MODEL.FCOS",)),
    ("Distillation", "Read when `MODEL.META_ARCHITECTURE` is `DistillDetector`.", ("MODEL.DISTILL",)),
)


def write_reference() -> str:
    """The content of docs/configs.md, for the keys of this package alone."""
    keys = dict(declared_keys(PACKAGE))
    parts = [HEAD]
    for title, text, nodes in SECTIONS:
        found = {name: key for name, key in keys.items() if name.startswith(tuple(f"{node}." for node in nodes))}
        found.update({name: key for name, key in keys.items() if name in nodes})
        rows = [_row(name, found[name]) for name in _in_order(found)]
        table = ["| key | default | may be | meaning |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {title}", "", *([text, ""] if text else []), *table, ""]))
    return "\n".join(parts)


def _in_order(names: Iterable[str]) -> list[str]:
    """Keys of a node together, in the order of their declaration; nodes by their names."""
    return sorted(names, key=lambda name: name.rpartition(".")[0])


def _row(name: str, key: Key) -> str:
    allowed = "" if key.allowed is None else key.allowed.in_words()
    return f"| `{name}` | `{_literal(key.default)}` | {allowed} | {key.meaning} |"


def _literal(value: object) -> str:
    """A default as it is typed in a configuration."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)
