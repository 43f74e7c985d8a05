"""One checkpoint file: reading that runs no code."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from ..errors import CheckpointError
from .class_names import entry, names_in_header
from .contents import as_tensors, find_weights, from_numpy
from .unpickler import load_arrays
from .writing import write_atomically as write_atomically  # its earlier place


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU.

    Args:
        path: ``.safetensors``, ``.pkl`` (arrays only: detectron2's model zoo) or anything that ``torch.save`` wrote.

    Returns:
        A dictionary whose ``model`` maps names to tensors, under whichever key the file has them; beside it what else
        the file holds, and ``by_suffix`` True where the names lack the model's own prefix (backbones).

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint, holding objects that it would be unsafe to load, or
            with NaN or infinite numbers in its weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {explain_absent(path)}")
    try:
        content = _READERS.get(path.suffix, _read_torch)(path)
    except CheckpointError:
        raise
    # Damaged files raise whatever the reader stumbles over first, so nothing narrower would do.
    except Exception as error:
        raise CheckpointError(_explain_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary.")
    key, weights = find_weights(path, content)
    others = {name: value for name, value in content.items() if name != key} if key else {}
    return {**others, "model": as_tensors(path, weights)}


def explain_absent(path: Path) -> str:
    """Why there is no checkpoint file at a path: it is a folder, or nothing is there."""
    if path.is_dir():
        return (
            "that is a folder; name the checkpoint file in it. A folder of transformers is imported by "
            "tools/import_checkpoint.py --source transformers, or teaches as it is where MODEL.DISTILL.TEACHER.NAME is "
            "TransformersDetector."
        )
    return f"there is no such file (working folder: {Path.cwd()})."


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Content of one of the settings files that stand beside weights.

    Args:
        key: configuration key or option that names the folder, for messages.

    Raises:
        CheckpointError: unreadable, no JSON, or something else than names and values.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors write a byte-order mark
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{key}: {path} cannot be read: {error}. Copy or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{key}: {path} holds a {type(content).__name__}, not names and values. Copy it again.")
    return content


def _read_torch(path: Path) -> Any:
    # Research code stores its command line beside the weights; a Namespace is as harmless as a dictionary.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    return {"model": safetensors.torch.load_file(path), **entry(names_in_header(path))}


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        content = load_arrays(file)
    if not isinstance(content, dict):
        return content
    if "model" in content:
        by_suffix = bool(content.get("matching_heuristics", False))
        weights = content["model"]
        if content.get("__author__") == "Caffe2":
            weights = _from_caffe2(weights)
        return {"model": weights, "by_suffix": by_suffix}
    # Detectron 1: ImageNet backbones are bare, detectors keep their arrays under "blobs".
    return {"model": _from_caffe2(content.get("blobs", content)), "by_suffix": True}


def _from_caffe2(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    arrays = {name: np.asarray(value) for name, value in arrays.items() if not name.endswith("_momentum")}
    tensors = {name: from_numpy(value) for name, value in arrays.items() if value.dtype.kind in "fiu"}
    return convert_c2_detectron_names(tensors)[0]


_READERS: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors, ".pkl": _read_pickle}


def _explain_unreadable(path: Path, error: Exception) -> str:
    """What is wrong in our own words: torch's text advises to load without its safeguard."""
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}. Correct MODEL.WEIGHTS, or the file's permissions."
    foreign = re.search(r"(?:GLOBAL|it asks for) ([\w.]+)", str(error))
    if foreign:
        return (
            f"{path} holds other Python objects than weights ({foreign[1].rstrip('.')}) and was not loaded, because "
            "loading them runs code. If you trust its origin, save only its tensors: "
            "torch.save({'model': weights}, FILE)."
        )
    size = path.stat().st_size
    reason = "it is damaged, cut short, or not a checkpoint" if size else "it is empty"
    return (
        f"{path} cannot be read ({size} bytes): {reason}. Copy or download it again, or name another file. Accepted "
        "are files of torch.save (.pth, .pt, .bin), .safetensors, and .pkl of arrays (detectron2's model zoo)."
    )
