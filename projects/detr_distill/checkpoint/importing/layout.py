"""Whose names a checkpoint has: this project's own, or those of one of the sources."""

from __future__ import annotations

import os
from collections.abc import Collection

from ...errors import CheckpointError
from ..export import STUDENT
from .families import recognise
from .family import OFFICIAL

OWN = "this project"


def check_layout(names: Collection[str], source: str, file: str | os.PathLike[str]) -> None:
    """Refuses a checkpoint that is certainly not of the source that it is said to be of.

    Args:
        names: of its tensors. source: one of ``SOURCES``. file: for messages.

    Raises:
        CheckpointError: it has other names; says whose and what to do.
    """
    found = find_layout(names)
    if found is None or found == source:
        return
    if found == OWN:
        raise CheckpointError(
            f"{file} has this project's own names: there is nothing to import. Use it as it is, as MODEL.WEIGHTS or "
            "MODEL.DISTILL.TEACHER.WEIGHTS, with the configuration that it was trained with."
        )
    folder = " with the folder that holds it and its config.json" if found == "transformers" else ""
    raise CheckpointError(f"{file} holds a checkpoint of {found}, not of {source}: use --source {found}{folder}.")


def find_layout(names: Collection[str]) -> str | None:
    """``OWN``, "transformers", "detrex", a family of the authors' code, or None where nothing is certain."""
    signs = {
        OWN: any(name.removeprefix(STUDENT).startswith("input_projection.") for name in names),
        "transformers": any(name.startswith(("model.encoder.", "model.decoder.")) for name in names),
        "detrex": any(".attentions.0." in name for name in names),
    }
    found = next((layout for layout, sign in signs.items() if sign), None)
    official = recognise(OFFICIAL, names)
    return found or (official.name if official else None)
