"""The data of a run: two sets, found by their folders, and images without labels."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ...config.ranges import PROPER_SHARE
from ...data.annotations.file import read_annotation_file
from ...data.annotations.text import read_contents
from ...data.coco import read_class_names
from ...data.formats import Format, Source, find_other_part, find_set
from ...data.formats.convert import keep
from ...data.registration import coco_files, is_configured
from ...errors import ConfigError, DataError

SEED = 0  # of what is held out


@dataclass
class Sets:
    """What ``DATASETS`` says of a run.

    Attributes:
        keys: by their full names. says: a line for each set.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    says: list[str] = field(default_factory=list)

    @property
    def are_mixed(self) -> bool:
        """Whether images without labels are among them."""
        return "DATASETS.UNLABELED" in self.keys


def choose_sets(arguments: Namespace, cfg: CfgNode) -> Sets:
    """The sets that the command line names.

    Args:
        arguments: with ``train``, ``val``, their ``_images``, ``hold_out`` and maybe ``unlabeled``.
        cfg: with the keys that say how Pascal VOC is read.

    Raises:
        DataError: see ``find_set``; both parts are the same, or too few images to hold any out.
        ConfigError: no training set, or no share.
    """
    if not arguments.train:
        raise ConfigError("--train is missing. Name a folder or file of COCO, Pascal VOC or YOLO.")
    PROPER_SHARE.check("--hold-out", arguments.hold_out)
    train, source = _training_set(arguments)
    val, other = _evaluated_set(arguments, source)
    if source is not None and other == source:
        raise DataError(
            f"--train {arguments.train} and --val {arguments.val} are the same set, {source.annotations}. Name "
            "another, or leave --val out: a share of the training images is held out then."
        )
    found = {name: place for name, place in ((train, source), (val, other)) if place is not None}
    entries = [entry_of(name, place) for name, place in found.items()]
    sets = Sets(says=[f"{name}: {place.form.value}, {place.annotations}" for name, place in found.items()])
    if not val:
        val = f"{train.removesuffix('_train')}_val"
        entries = _hold_out(cfg, entries[0], val, arguments.hold_out, sets)
    elif source is not None and other is not None:
        _join_classes(sets, cfg, source, other)
    sets.keys |= {"DATASETS.TRAIN": [train], "DATASETS.TEST": [val]}
    _add_unlabelled(arguments, cfg, entries, sets)
    if entries:
        sets.keys["DATASETS.REGISTER"] = entries
    return sets


def _training_set(arguments: Namespace) -> tuple[str, Source | None]:
    """Its name, and where it is; None for a registered one."""
    name = registered_name(arguments.train)
    if name:
        return name, None
    return set_name(arguments.train, "train"), find_set(
        arguments.train, "train", "--train", arguments.train_images or ""
    )


def _evaluated_set(arguments: Namespace, train: Source | None) -> tuple[str, Source | None]:
    """The same of the set to evaluate on; no name where the training set has no other part.

    Args:
        train: where the training set is.
    """
    if arguments.val:
        name = registered_name(arguments.val)
        if name:
            return name, None
        return set_name(arguments.val, "val"), find_set(arguments.val, "val", "--val", arguments.val_images or "")
    if train is None:
        raise ConfigError(f"--train {arguments.train} is a registered name: name the set to evaluate on with --val.")
    other = find_other_part(arguments.train, "val", "--train")
    return ("", None) if other is None else (set_name(arguments.train, "val"), other)


def registered_name(word: str | None) -> str:
    """A registered name, else nothing: a path wins."""
    return word if word and not Path(word).exists() and word in DatasetCatalog and not is_configured(word) else ""


def set_name(path: str, part: str) -> str:
    """A set's name after its folder or file."""
    stem = re.sub(r"\W+", "_", Path(path).expanduser().absolute().stem).strip("_").lower()
    name = f"{stem.removesuffix(f'_{part}')}_{part}"
    return f"own_{name}" if name in DatasetCatalog and not is_configured(name) else name


def entry_of(name: str, source: Source) -> list[str]:
    """The entry of ``DATASETS.REGISTER``, with full paths."""
    images = source.images
    if source.form is not Format.YOLO or Path(images).is_dir():
        images = str(Path(images).absolute())
    return [name, str(Path(source.annotations).absolute()), images]


def _join_classes(sets: Sets, cfg: CfgNode, train: Source, val: Source) -> None:
    """Two parts in Pascal VOC's format that name different classes have all of both."""
    if cfg.DATASETS.CLASS_NAMES or {train.form, val.form} != {Format.VOC}:
        return
    names = [read_class_names(coco_files(cfg, entry_of("set", source))[0]) for source in (train, val)]
    if names[0] != names[1]:
        sets.keys["DATASETS.CLASS_NAMES"] = sorted({*names[0], *names[1]})


def _hold_out(cfg: CfgNode, entry: list[str], val: str, share: float, sets: Sets) -> list[list[str]]:
    """The entries of the two parts into which a set is divided, always the same."""
    file, folder = coco_files(cfg, entry)
    read_annotation_file(file)  # says what is wrong with it
    content = read_contents(file)
    images = content.get("images") or []
    count = len(images)
    held = round(share * count)
    if not 0 < held < count:
        raise DataError(
            f"--train {entry[1]} has {count} images, of which --hold-out {share} would keep {held} to evaluate on. "
            "Name another set with --val."
        )
    chosen = set(np.random.default_rng(SEED).permutation(count)[:held].tolist())
    parts = [[image for n, image in enumerate(images) if (n in chosen) is wanted] for wanted in (False, True)]
    files = [keep({**content, "images": part, "annotations": _of(part, content)}) for part in parts]
    sets.says.append(f"{val}: {held} of the {count} images, held out of the training (--hold-out {share})")
    return [[name, path, folder] for name, path in zip((entry[0], val), files, strict=True)]


def _of(images: list[dict], content: dict) -> list[dict]:
    """The objects of some images."""
    known = {_plain(image["id"]) for image in images}
    return [entry for entry in content.get("annotations") or [] if _plain(entry["image_id"]) in known]


def _plain(number: object) -> str:
    """An id, which may be written as 7, "7" or 7.0."""
    return str(number).removesuffix(".0")


def _add_unlabelled(arguments: Namespace, cfg: CfgNode, entries: list[list[str]], sets: Sets) -> None:
    folder = vars(arguments).get("unlabeled")
    if not folder:
        return
    if not Path(folder).expanduser().is_dir():
        raise DataError(f"--unlabeled {folder}: there is no such folder. Name one that holds images.")
    name = set_name(folder, "unlabeled")
    entries.append([name, "", str(Path(folder).expanduser().absolute())])
    sets.keys |= {
        "DATASETS.UNLABELED": [name],
        "DATALOADER.UNLABELED_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "INPUT.STRONG.IMAGES": "unlabeled",
    }
    sets.says.append(f"{name}: images of {folder}, as many in a batch as labelled images")
