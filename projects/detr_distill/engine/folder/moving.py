"""Renaming an earlier run's folder to make room for a new run, and never what the new run reads or stands in."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ...config.build import flatten
from ...config.files import SHIPPED, complete_path
from ...config.keys import read_key
from ...config.yaml_files import check_file
from ...data import dataset_files
from ...data.checks import check_set, image_files
from ...distill.teachers.configuration import teacher_settings
from ...errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"  # the whole configuration of a run, in its folder


def move_aside(folder: Path) -> Path:
    """Renames a folder to the first free ``NAME.old-<n>``; of a link, what it points to.

    Raises:
        ConfigError: the system refuses.
    """
    target = free_name(folder)
    try:
        os.rename(folder.resolve(), target)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be renamed to {target}: {error.strerror}. Name another folder.") from error
    return target


def move_back(moved: Path, folder: Path) -> None:
    """Puts a folder that was moved aside in the place of one that holds nothing; says where it is in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(moved, folder)
        logger.warning("--overwrite: the earlier run is in %s again, for the new one did not start.", folder)
    except OSError as error:
        logger.warning("--overwrite: the earlier run is still in %s: %s", moved, error.strerror)


def free_name(folder: Path) -> Path:
    """The first ``NAME.old-<n>`` that is not taken."""
    folder = folder.resolve()
    number = 1
    while os.path.lexists(target := folder.with_name(f"{folder.name}.old-{number}")):
        number += 1
    return target


def check_movable(folder: Path, cfg: CfgNode, config_file: str = "") -> None:
    """Raises ConfigError where renaming ``OUTPUT_DIR`` would take more with it than an earlier run.

    Args:
        folder: the value of ``OUTPUT_DIR``. cfg: of the new run. config_file: that it was read from, if any.
    """
    place = folder.resolve()
    kinds = {
        "the folder that this program was started in": Path.cwd(),
        "your home folder": Path("~").expanduser(),
        "the folder of this project": SHIPPED,
    }
    what = next((kind for kind, path in kinds.items() if path.resolve().is_relative_to(place)), "")
    if what:
        raise ConfigError(f"--overwrite would rename OUTPUT_DIR {folder}, which is or contains {what}. Name another.")
    if os.path.ismount(place):
        raise ConfigError(
            f"--overwrite cannot rename OUTPUT_DIR {folder}: a disk is mounted there. Name a folder inside, or another."
        )
    named = [*_named_paths(cfg), *_configuration_files(cfg, config_file, place)]
    inside = {key: text for key, text in named if _is_inside(text, place)}
    if inside:
        raise ConfigError(
            f"--overwrite would rename OUTPUT_DIR {folder}, and this run reads what is in it:\n"
            + "".join(f"  {key}: {text}\n" for key, text in inside.items())
            + "Name another OUTPUT_DIR, or copy these files to another place first and name them there."
        )


def _named_paths(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """(what names it, text) of every text that may be the path of something that a run reads."""
    for key, value in flatten(cfg).items():
        if key != "OUTPUT_DIR":
            yield from ((key, text) for text in _texts(value))
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        for name in read_key(cfg, key):
            yield from ((f"data set {name}", text) for text in dataset_files(name))
            if name in DatasetCatalog:  # an annotation file may name its images by their full paths
                yield from ((f"images of {name}", text) for text in check_set(cfg, name, key).folders)
    for name in cfg.DATASETS.UNLABELED:
        if name in DatasetCatalog:
            yield from (
                (f"images of {name}", folder) for folder in {os.path.dirname(file) for file in image_files(name)}
            )
    for key, value in teacher_settings(cfg).items():
        if key.startswith("DATASETS."):
            yield from ((f"{key} of the teacher", text) for text in _texts(value))


def _configuration_files(cfg: CfgNode, config_file: str, place: Path) -> Iterator[tuple[str, str]]:
    """The configuration's file and its bases, and those of the teacher's.

    Whoever goes on with the run gives the same command again. A ``config.yaml`` that a run left in the folder is none
    of them, for the new run writes it anew.
    """
    file = complete_path(config_file)
    if file and Path(file).resolve() != place / CONFIG_FILE:
        yield from (("--config-file or its _BASE_", each) for each in check_file(file))
    teacher = complete_path(cfg.MODEL.DISTILL.TEACHER.CONFIG_FILE)
    with contextlib.suppress(ConfigError):  # what is wrong with it is said when the teacher is built
        yield from (("_BASE_ of the teacher's CONFIG_FILE", each) for each in check_file(teacher)[1:])


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for member in value:
            yield from _texts(member)


def _is_inside(text: str, place: Path) -> bool:
    path = complete_path(text)
    return bool(text) and os.path.exists(path) and Path(path).resolve().is_relative_to(place)
