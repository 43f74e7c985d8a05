"""What a checkpoint file holds: where its weights are, that they are numbers, and which moving average was left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, first

logger = logging.getLogger(__name__)

# Under which key files keep the trained weights, the usual first, and under which their moving average.
TRAINED = ("model", "state_dict", "model_state_dict", "model_state", "params", "weights", "network", "net")
AVERAGED = ("model_ema", "ema", "ema_model", "ema_state", "ema_state_dict", "state_dict_ema", "params_ema")
# Some averages keep their weights one dictionary deeper, beside their counters.
INNER = ("module", "model", "state_dict")
# Names that a wrapper puts before those of the model that it wraps.
WRAPPERS = ("module.", "_orig_mod.")
# Types that weights and counters have; float8 and quantised tensors want factors that stand elsewhere.
PLAIN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
EMA_TEACHER = "teacher.average."  # of a run's own checkpoint


def find_weights(path: Path, content: Mapping[str, Any]) -> tuple[str, Any]:
    """The key under which a file keeps its weights, empty where it holds them alone, and what is there.

    An average beside them is not taken, which a warning says.

    Raises:
        CheckpointError: weights are found under no key that is known.
    """
    found = [key for key in TRAINED if isinstance(content.get(key), Mapping) or (key == "model" and key in content)]
    averages = [key for key in AVERAGED if _tensors_in(content.get(key))]
    if found:
        key = next((key for key in found if _tensors_in(content[key])), found[0])
        if averages:
            logger.warning(
                "%s: its weights under '%s' are taken, and not their moving average under '%s'. To take that one, save "
                "it alone: torch.save({'model': torch.load(FILE)['%s']}, NEW_FILE).",
                path, key, averages[0], averages[0],
            )  # fmt: skip
        return key, _tensors_in(content[key]) or content[key]
    if _holds_tensors(content):
        return "", content
    if averages:
        logger.warning(
            "%s: its weights are the moving average under '%s', which is all that it has.", path, averages[0]
        )
        return averages[0], _tensors_in(content[averages[0]])
    deeper = [key for key, value in content.items() if _tensors_in(value)]
    if len(deeper) == 1:
        return deeper[0], _tensors_in(content[deeper[0]])
    if not deeper:
        return "", content
    raise CheckpointError(
        f"{path} holds weights under {' and '.join(map(repr, deeper))}, and it is not certain which to take. Save the "
        f"right ones alone: torch.save({{'model': torch.load(FILE)['{deeper[0]}']}}, NEW_FILE)."
    )


def as_tensors(path: Path, weights: Any) -> dict[str, Tensor]:
    """Weights as tensors, under the names of the model itself.

    Raises:
        CheckpointError: they are something else, of a type or layout that no detector has (float8, complex, quantised,
            sparse), two come to the same name, or one is infinite or NaN.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path} is not a checkpoint: its weights are {_describe(weights)}.")
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = from_numpy(value)
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a checkpoint: under {name!r} it has {_describe(value)}, not a tensor."
            )
        own = unwrapped_name(name)
        if own in tensors:
            raise CheckpointError(f"{path} has two tensors for {own}, one of them as {name}. Save one of them.")
        if not _is_plain(value):
            raise CheckpointError(
                f"{path}: {name} is a tensor of {_form(value)}, which is not read. Save the weights dense, in float32, "
                "float16 or bfloat16: torch.save({'model': {name: tensor.to_dense().float(), ...}}, NEW_FILE)."
            )
        tensors[own] = value
    check_finite(tensors, str(path))
    return tensors


def unwrapped_name(name: str) -> str:
    """``module._orig_mod.head.weight``, as DDP and torch.compile call it, as ``head.weight``."""
    while name.startswith(WRAPPERS):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name.replace("._orig_mod.", ".")


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError where a tensor is infinite or NaN; ``source`` names the file."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"{source}: {len(bad)} of {len(weights)} tensors hold NaN or infinite numbers: {first(bad)}. "
            "The training that wrote them had diverged; take an earlier checkpoint of it."
        )


def say_average(names: Iterable[str], file: str) -> None:
    """Warns where a run's checkpoint holds its student's moving average, and the student itself is taken."""
    if any(name.startswith(EMA_TEACHER) for name in names):
        logger.warning(
            "%s: the student is taken, and not its moving average under '%s' (EmaTeacher). To take that one, save its "
            "tensors alone, without that prefix.",
            file, EMA_TEACHER,
        )  # fmt: skip


def from_numpy(array: np.ndarray) -> Tensor:
    """A copy: torch knows only this machine's byte order, and wants memory that it may write."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _is_plain(value: Tensor) -> bool:
    return value.dtype in PLAIN and value.layout == torch.strided and value.device.type != "meta"


def _form(value: Tensor) -> str:
    if value.device.type == "meta":
        return "a shape without numbers"
    return str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor | np.ndarray) for entry in value.values())


def _tensors_in(value: Any) -> Mapping[str, Any]:
    """The dictionary of tensors that a value is or has one step inside; empty where it has none."""
    if _holds_tensors(value):
        return value
    inner = [value[key] for key in INNER if _holds_tensors(value.get(key))] if isinstance(value, Mapping) else []
    return inner[0] if inner else {}


def _describe(value: Any) -> str:
    return f"a {type(value).__name__}" if value or isinstance(value, Tensor) else f"an empty {type(value).__name__}"
