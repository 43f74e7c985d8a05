"""What a run learns from, by content: paths may change between two parts of a run, what is in the files may not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from ...checkpoint.writing import write_atomically
from ...config.files import complete_path
from ...data import class_names, dataset_files
from ...data.check_cache import hash_file
from ...data.checks import check_set, describe_files, image_files
from ...distill.teachers.configuration import teacher_settings
from ...errors import ConfigError
from ..run_folder import has_checkpoints

logger = logging.getLogger(__name__)

CONTENTS_FILE = "contents.json"
NAMES_SHOWN = 5
_IMAGES = "other names, or files of other sizes"
# What of a teacher's own configuration decides what it says.
READ, UNREAD = ("MODEL.", "INPUT."), ("MODEL.DEVICE", "MODEL.WEIGHTS")

Contents = dict[str, str | list[str]]


def keep_contents(cfg: CfgNode, *, resume: bool) -> None:
    """Writes ``contents.json`` to ``OUTPUT_DIR``; of a resumed run it is compared with what is there first.

    Raises:
        ConfigError: the run in the folder learned from something else.
    """
    problem = _compare_and_write(cfg, resume) if comm.is_main_process() else ""
    problem = comm.all_gather(problem)[0]  # all processes end, not the first alone
    if problem:
        raise ConfigError(problem)


def _compare_and_write(cfg: CfgNode, resume: bool) -> str:
    """What is wrong, empty where nothing is."""
    folder = Path(cfg.OUTPUT_DIR)
    contents = describe_contents(cfg)
    problem = _compare(folder, contents) if resume and has_checkpoints(folder) else ""
    if not problem:
        text = json.dumps(contents, indent=1)
        write_atomically(folder / CONTENTS_FILE, lambda file: file.write(text.encode()))
    return problem


def describe_contents(cfg: CfgNode) -> Contents:
    """Of each training set class names, annotation file and images; images without labels; the teacher.

    Files are known by their SHA-256, images by their names and sizes in bytes. What has no file on this machine is
    absent: a set that a plug-in makes, weights behind an address.
    """
    contents: Contents = {}
    for name in cfg.DATASETS.TRAIN:
        names = class_names(name)
        if names is not None:
            contents[f"classes of {name}"] = list(names)
        files = dataset_files(name)
        if files and os.path.isfile(files[0]):
            contents[f"annotations of {name}"] = hash_files(Path(files[0]))
            contents[f"images of {name}"] = check_set(cfg, name, "DATASETS.TRAIN").files
    for name in cfg.DATASETS.UNLABELED if cfg.DATALOADER.UNLABELED_PER_BATCH else ():
        if name in DatasetCatalog:  # what LABELED_SHARE leaves is of the training sets
            contents[f"images of {name}"] = describe_files(image_files(name))
    if cfg.MODEL.META_ARCHITECTURE == "DistillDetector":
        contents.update(_describe_teacher(cfg))
    return contents


def _describe_teacher(cfg: CfgNode) -> Contents:
    contents: Contents = {}
    weights = cfg.MODEL.DISTILL.TEACHER.WEIGHTS
    path = Path(complete_path(weights))
    if weights and path.exists():
        contents["weights of the teacher"] = hash_files(path)
    settings = teacher_settings(cfg)
    read = {key: value for key, value in sorted(settings.items()) if key.startswith(READ) and key not in UNREAD}
    if read:
        contents["configuration of the teacher"] = hashlib.sha256(json.dumps(read, default=str).encode()).hexdigest()
    return contents


def hash_files(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    if path.is_file():
        return hash_file(path)
    parts = {str(file.relative_to(path)): hash_files(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _compare(folder: Path, contents: Contents) -> str:
    """In what the contents are not those of the run in a folder, empty where they are or nobody knows."""
    try:
        before = json.loads((folder / CONTENTS_FILE).read_text(encoding="utf-8"))
        shared = before.keys() & contents.keys()
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: it is no object
        logger.warning("--resume: data and teacher are not compared with those of the start: %s", error)
        return ""
    differing = [what for what in sorted(shared) if before[what] != contents[what]]
    if not differing:
        return ""
    return (
        f"--resume: the run in {folder} learned from something else:\n"
        + "".join(_describe_change(what, before[what], contents[what]) for what in differing)
        + "Give it what it had, wherever that lies now, or start a run in another OUTPUT_DIR; MODEL.WEIGHTS may name a "
        "checkpoint of this one."
    )


def _describe_change(what: str, before: object, now: object) -> str:
    if not isinstance(before, list) or not isinstance(now, list):
        return f"  the {what}: {_IMAGES if what.startswith('images') else 'another content'}\n"
    pairs = list(zip(before, now, strict=False))
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    shown = slice(first, first + NAMES_SHOWN)
    return f"  the {what}, from number {first} on: {before[shown]} there, {now[shown]} now\n"
