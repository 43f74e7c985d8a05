"""Everything of a set that a run will need, checked before the run starts; and what was found there."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .check_cache import entry_file, read_entry, write_entry
from .digits import prepare
from .formats.content import list_images
from .image_files import check_image_files
from .records import load_set
from .registration import class_names, dataset_files, unlabelled_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSet:
    """What was found in a set without fault.

    Attributes:
        name: the set's. classes: its class list; None where it has none.
        objects: usable objects of an image (neither crowds nor dropped): number of such images.
        files: SHA-256 over its image files, see ``describe_files``. folders: that hold them.
    """

    name: str
    classes: tuple[str, ...] | None
    objects: Mapping[int, int]
    files: str = ""
    folders: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return sum(self.objects.values())

    @property
    def total(self) -> int:
        """Usable objects of all images."""
        return sum(count * images for count, images in self.objects.items())

    @property
    def without(self) -> int:
        """Images without a usable object."""
        return self.objects.get(0, 0)

    @property
    def most(self) -> int:
        """Usable objects of the image that has the most."""
        return max(self.objects, default=0)

    def images_above(self, limit: int) -> int:
        """Images with more usable objects than ``limit``."""
        return sum(images for count, images in self.objects.items() if count > limit)


def check_set(cfg: CfgNode, name: str, key: str) -> CheckedSet:
    """Reads a registered set, and looks for its image files and into their headers.

    Args:
        cfg: its ``DATASETS.REGISTER`` has been registered. name: of the set. key: that names it, ``DATASETS.TRAIN`` or
            ``DATASETS.TEST``.

    Raises:
        DataError: the annotation file or an image file is missing or faulty.
    """
    start = time.monotonic()
    prepare(name)
    metadata = MetadataCatalog.get(name).as_dict()
    masks = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else ""
    settings = (key, cfg.DATASETS.BAD_BOXES, masks, os.path.abspath(metadata.get("image_root") or "."))
    file = entry_file(metadata["json_file"], settings) if metadata.get("json_file") else None
    found = None if file is None else _from_entry(name, read_entry(file))
    if found is not None:
        if found.classes is not None and metadata.get("thing_classes") is None:
            MetadataCatalog.get(name).thing_classes = list(found.classes)
        logger.info("%s %s: %d images, unchanged since they were checked", key, name, found.images)
        return found
    records = load_set(cfg, name, key)
    read = check_image_files(records, f"{key} {name}")
    folders = sorted({os.path.dirname(record["file_name"]) for record in records})
    described = describe_files(record["file_name"] for record in records)
    found = CheckedSet(name, class_names(name), _count_objects(records), described, tuple(folders))
    rest = "" if read == len(records) else f" (the size of {read}, of the others when they are read)"
    logger.info("%s %s: %d images checked%s in %.1f s", key, name, len(records), rest, time.monotonic() - start)
    if file is not None:
        objects = sorted(found.objects.items())
        write_entry(
            file, folders, {"classes": found.classes, "objects": objects, "files": found.files, "folders": folders}
        )
    return found


def _from_entry(name: str, entry: Any) -> CheckedSet | None:
    """The inverse of what is written; None for anything else."""
    try:
        classes = None if entry["classes"] is None else tuple(map(str, entry["classes"]))
        objects = {int(count): int(images) for count, images in entry["objects"]}
        return CheckedSet(name, classes, objects, str(entry["files"]), tuple(map(str, entry["folders"])))
    except (KeyError, TypeError, ValueError):
        return None


def image_files(name: str) -> list[str]:
    """Paths of the images of a registered set; of one without annotations no image is opened."""
    files = dataset_files(name)
    if files and not files[0]:
        return [os.path.join(files[1], image) for image in list_images(Path(files[1]), f"Data set {name}")]
    return [record["file_name"] for record in unlabelled_records(name)]


def describe_files(paths: Iterable[str]) -> str:
    """SHA-256 over names and sizes in bytes of image files, wherever they lie together.

    What is in the files is not read: another picture of the same name and size counts as the same.
    """
    paths = sorted(paths)
    # Character by character; of all that lie between the two, too.
    shared = len(os.path.commonprefix(paths[:1] + paths[-1:]))  # noqa: RUF071
    digest = hashlib.sha256()
    for path in paths:
        size = os.path.getsize(path) if os.path.isfile(path) else -1  # behind an address
        digest.update(f"{path[shared:]}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _count_objects(records: Sequence[dict]) -> Counter[int]:
    return Counter(sum(not item.get("iscrowd", 0) for item in record.get("annotations", ())) for record in records)
