"""Loading where every tensor must fit: frozen teachers, evaluation, resumed runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from .contents import say_average
from .export import detector_in, fit_to_model, is_training_only
from .files import read_checkpoint
from .locate import local_file
from .matching import advise, compare


def load_strict(model: nn.Module, file: str | os.PathLike[str], key: str = "MODEL.DISTILL.TEACHER.WEIGHTS") -> None:
    """Loads weights into a module and accepts no difference in names or shapes, but for what training alone needs.

    Args:
        model: receives the weights, in place; a frozen teacher in the usual case.
        file: ``.pth`` with ``{"model": weights}`` or bare weights, ``.safetensors`` or ``.pkl``; a path or an address.
            A distilling model's checkpoint gives its student, one of a run with ``SOLVER.EMA`` the average.
        key: configuration key that names the file, for messages.

    Raises:
        CheckpointError: no file given, unreadable, or the first names that are missing, unknown or of another shape.
    """
    if not str(file):
        raise CheckpointError(
            f"{key} is empty: without trained weights a frozen network would teach noise. Set it to a checkpoint."
        )
    weights = detector_in(_read(file, key))
    say_average(weights, f"{key} {file}")
    _load(model, fit_to_model(weights, model.state_dict()), f"{key} {file}")


def load_part(module: nn.Module, file: str | os.PathLike[str], prefix: str, key: str) -> None:
    """Loads the part of a checkpoint whose names start with ``prefix`` into a module, all of it.

    Raises:
        CheckpointError: unreadable, no such part, or the first names that differ.
    """
    weights = _read(file, key)["model"]
    part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not part:
        raise CheckpointError(
            f"{key} {file} has no weights under '{prefix}'. Name a checkpoint of the training that made them "
            "(model_final.pth of its OUTPUT_DIR)."
        )
    _load(module, part, f"{key} {file}")


def _read(file: str | os.PathLike[str], key: str) -> dict[str, Any]:
    path = local_file(str(file), key)
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def _load(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    fit = compare(weights, model).without(is_training_only)
    if not fit.is_complete:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}:\n{fit.problems()}\n"
            f"{advise(fit, 'Use the configuration with which these weights were trained.')}"
        )
    model.load_state_dict(fit.matched, strict=False)
