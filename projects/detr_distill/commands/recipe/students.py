"""The detectors that have a name, each a configuration file; and others by their file or folder."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint.transformers_folder import open_folder, read_config, read_preprocessing
from ...config.files import SHIPPED, complete_path
from ...config.yaml_files import check_file, load_file
from ...errors import ConfigError
from ...hugging_face.network import ACTIVATIONS

FOLDERS = ("transformers", "detr", "convolutional")  # of configs/ that hold plain detectors
OF_A_FOLDER = str(SHIPPED / "configs" / "transformers" / "Base-transformers.yaml")  # of a model of transformers
# Model types that pad and mask images of a batch; all others stretch them to one size.
_PADDING = ("detr", "conditional_detr", "dab-detr", "deformable_detr")


@dataclass(frozen=True)
class Student:
    """A detector to train.

    Attributes:
        base: full path of its configuration. keys: what differs. says: what it is, in words.
    """

    base: str
    says: str
    keys: dict[str, Any] = field(default_factory=dict)


def student_names() -> dict[str, Path]:
    """Short names, and the configuration file of each."""
    files = [file for name in FOLDERS for file in sorted((SHIPPED / "configs" / name).glob("*.yaml"))]
    return {file.stem: file for file in files if not file.name.startswith("Base-") and _is_plain(file)}


def _is_plain(file: Path) -> bool:
    model = load_file(str(file)).get("MODEL") or {}
    return model.get("META_ARCHITECTURE") != "DistillDetector"


def find_student(name: str, key: str) -> Student:
    """The detector of a short name, of a configuration file or of a folder of transformers.

    Args:
        key: option that names it, for messages.

    Raises:
        ConfigError: none of them, or a configuration that cannot be read. CheckpointError: see ``open_folder``.
    """
    path = Path(complete_path(name))
    if path.suffix in (".yaml", ".yml"):
        check_file(str(path))
        return Student(os.path.abspath(path), f"the detector of {name}")
    if path.is_dir():
        return _of_folder(name, key)
    names = student_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"{key} {name} is no name that is known, no configuration file and no folder.{guess} All names: "
            "detr-distill distil --list"
        )
    return Student(str(names[name]), f"{name} ({names[name]})")


def _of_folder(name: str, key: str) -> Student:
    folder = open_folder(name, key)
    kind = str(read_config(folder, key).get("model_type"))
    if kind not in ACTIVATIONS:
        raise ConfigError(f"{key} {name} holds a model of type {kind!r}. Known: {', '.join(ACTIVATIONS)}.")
    keys: dict[str, Any] = {"MODEL.TRANSFORMERS.FOLDER": os.path.abspath(folder)}
    images = read_preprocessing(folder, key)
    if kind in _PADDING or (images is not None and images.size is not None):
        keys["MODEL.TRANSFORMERS.SIZE"] = []
    if ACTIVATIONS[kind] == "softmax":
        keys["MODEL.DETR.LOSS.CLASSIFICATION"] = "softmax"
    return Student(OF_A_FOLDER, f"{kind} of transformers, trained further from {name}", keys)
