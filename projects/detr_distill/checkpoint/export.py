"""The student inside a distilling model, by the names of its parameters."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .class_names import entry, header
from .writing import write_atomically

STUDENT = "student."
TEACHER = "teacher."
# Query groups of the training step; no detection depends on them.
TRAINING_ONLY = "training_groups."
# Attributes that hold the detector in training programs of others, such as Lightning's.
WRAPPING = ("model.", "detector.", "network.", "net.")


# Beside the model in a run's checkpoint: the moving average of its detector, under the plain detector's names.
AVERAGED = "averaged_student"


def detector_in(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to detect with that a checkpoint holds: the moving average where its run kept one, ``SOLVER.EMA``."""
    return dict(checkpoint.get(AVERAGED) or checkpoint["model"])


def is_distilling(names: Iterable[str]) -> bool:
    """True for the names of a ``DistillDetector``: the plain detector is under ``student.``."""
    return any(name.startswith(STUDENT) for name in names)


def student_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain detector's part of some weights, under the plain detector's names."""
    if not is_distilling(weights):
        return dict(weights)
    return {name.removeprefix(STUDENT): value for name, value in weights.items() if name.startswith(STUDENT)}


def fit_to_model(weights: Mapping[str, Tensor], model_names: Collection[str]) -> dict[str, Tensor]:
    """Adds or removes the ``student.`` prefix where a checkpoint has it and a model has not, or the reverse.

    A prefix of a program that wraps its detector (``model.``) is removed as well.

    Args:
        weights: of a checkpoint. model_names: of the model's own state.
    """
    weights = _without_wrapper(weights, {name.removeprefix(STUDENT) for name in model_names})
    if is_distilling(model_names) and not is_distilling(weights):
        return {STUDENT + name: value for name, value in weights.items()}
    if is_distilling(weights) and not is_distilling(model_names):
        return student_weights(weights)
    return dict(weights)


def _without_wrapper(weights: Mapping[str, Tensor], plain_names: Collection[str]) -> Mapping[str, Tensor]:
    """Weights without the name under which another program's wrapper keeps its model, where none fits as it is."""
    if any(name.removeprefix(STUDENT) in plain_names for name in weights):
        return weights
    for attribute in WRAPPING:
        inner = {name.removeprefix(attribute): value for name, value in weights.items() if name.startswith(attribute)}
        if any(name.removeprefix(STUDENT) in plain_names for name in inner):
            return inner
    return weights


def is_training_only(name: str) -> bool:
    """True for a parameter that no detection depends on, of the plain detector or of a student."""
    return name.removeprefix(STUDENT).startswith(TRAINING_ONLY)


def detecting_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the plain detector needs of some weights to detect, under its own names."""
    return {name: value for name, value in student_weights(weights).items() if not is_training_only(name)}


def student_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights that the plain detector detects with: of a distilling model its student's, of any other model its own."""
    return detecting_weights(undistributed(model).state_dict())


def undistributed(model: nn.Module) -> nn.Module:
    """The model itself, or what DistributedDataParallel wraps."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save_weights(
    weights: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    form: str | None = None,
) -> None:
    """Writes ``{"model": weights}`` as torch does, or the bare tensors of a safetensors file.

    Class names stand beside the weights, or in the header.

    Args:
        form: "pth" or "safetensors"; None: as the file's suffix says.

    Raises:
        CheckpointError: another suffix, and no form.
    """
    if form is None:
        check_suffix(path)
        form = Path(path).suffix[1:]
    # Tensors may share memory or be slices of a larger one; a file must hold each on its own.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    if form == "safetensors":
        write_atomically(path, lambda file: file.write(safetensors.torch.save(weights, header(class_names))))
    else:
        write_atomically(path, lambda file: torch.save({"model": weights, **entry(class_names)}, file))


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError where :func:`save_weights` would not know the form of a file by its name."""
    if Path(path).suffix not in (".safetensors", ".pth"):
        raise CheckpointError(f"{path}: the file's name must end in .pth or .safetensors.")
