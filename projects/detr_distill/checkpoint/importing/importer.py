"""From a checkpoint of another project to weights and a configuration of ours that fit each other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ...config.build import build_config, default_config
from ...errors import CheckpointError
from ..files import read_checkpoint
from ..matching import compare
from ..transformers_folder import open_folder, read_config, read_weights
from .describe import describe
from .families import FAMILIES, families_of
from .family import DETREX, OFFICIAL, TRANSFORMERS, Family, Settings
from .layout import check_layout
from .names_detrex import detrex_family, rename_detrex
from .names_official import rename_official
from .names_transformers import rename_transformers
from .settings import (
    OPTION,
    coco_names_by_id,
    detrex_settings,
    official_settings,
    transformers_family,
    transformers_settings,
)

NUM_HEADS = "MODEL.DETR.NUM_HEADS"
SOURCES = (TRANSFORMERS, DETREX, *families_of(OFFICIAL))


@dataclass
class Imported:
    """A detector from elsewhere.

    Attributes:
        weights: under our names. config: what differs from the defaults, as nested dictionaries.
        class_names: of its classes, as ``MODEL.DISTILL.TEACHER.CLASS_NAMES`` wants them; empty where unknown.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    class_names: tuple[str, ...]

    def yaml(self) -> str:
        """The configuration as the content of a file."""
        return yaml.safe_dump(self.config, sort_keys=False, default_flow_style=None, width=120)


def import_checkpoint(source: str, path: str | os.PathLike[str], overrides: list[str] | None = None) -> Imported:
    """Reads a checkpoint and proves that it fits the detector that its configuration describes.

    Args:
        source: one of ``SOURCES``: a folder of transformers, a file of detrex, or one of the authors' code.
        path: of the folder or file. overrides: KEY VALUE pairs for what the checkpoint does not tell, such as
            ``MODEL.DETR.NUM_HEADS 4``.

    Raises:
        CheckpointError: unreadable, of another family, or with tensors that have no place here; names the first.
    """
    if source not in SOURCES:
        raise CheckpointError(f"source {source!r}: known are {', '.join(SOURCES)}.")
    readers = {TRANSFORMERS: _read_transformers, DETREX: _read_detrex}
    weights, family, settings = readers.get(source, _read_official)(source, Path(path))
    overrides = overrides or []
    if NUM_HEADS in overrides[::2]:  # others are counted from it
        settings = dataclasses.replace(settings, num_heads=build_config("", overrides).MODEL.DETR.NUM_HEADS)
    config = _override(describe(weights, family, settings), overrides)
    _check_fit(weights, config, str(path), family.name)
    classes = config["MODEL"]["DETR"]["NUM_CLASSES"]
    names = settings.class_names or (coco_names_by_id() if classes == 91 else ())
    return Imported(weights, config, names if len(names) == classes else ())


def _read_transformers(source: str, folder: Path) -> tuple[dict[str, Tensor], Family, Settings]:
    folder = open_folder(folder, OPTION)
    config = read_config(folder, OPTION)
    family, settings = transformers_family(config), transformers_settings(config, folder)
    weights, file = read_weights(folder, OPTION)
    check_layout(weights, source, file)
    return rename_transformers(weights, family.name, settings.refinement), family, settings


def _read_detrex(source: str, file: Path) -> tuple[dict[str, Tensor], Family, Settings]:
    weights = _read_file(source, file)["model"]
    family = detrex_family(weights)
    return rename_detrex(weights, family.name), family, detrex_settings(family)


def _read_file(source: str, file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder; --source {source} reads one file. For a folder: transformers.")
    checkpoint = read_checkpoint(file)
    check_layout(checkpoint["model"], source, file)
    return checkpoint


def _read_official(source: str, file: Path) -> tuple[dict[str, Tensor], Family, Settings]:
    checkpoint, family = _read_file(source, file), FAMILIES[source]
    weights, arguments = checkpoint["model"], checkpoint.get("args") or {}
    settings = official_settings(arguments if isinstance(arguments, Mapping) else vars(arguments), family)
    return rename_official(weights, family.name, settings.refinement), family, settings


def _override(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Writes KEY VALUE pairs into nested dictionaries; their names and types are those of the configuration's keys."""
    known = build_config("", overrides)
    for key in overrides[::2]:
        *parents, last = key.split(".")
        node, value = config, known
        for parent in parents:
            node, value = node.setdefault(parent, {}), value[parent]
        node[last] = value[last]
    return config


def _check_fit(weights: Mapping[str, Tensor], config: dict[str, Any], file: str, family: str) -> None:
    cfg = default_config()
    cfg.merge_from_other_cfg(CfgNode(config))
    cfg.MODEL.DEVICE = "cpu"
    with torch.random.fork_rng():
        model = build_model(cfg)
    fit = compare(weights, model)
    if not fit.is_complete:
        raise CheckpointError(
            f"{file} does not fit {family} as it is built here:\n{fit.problems()}\n"
            "Name what the checkpoint does not tell as KEY VALUE, for example MODEL.DETR.NUM_HEADS 4."
        )
