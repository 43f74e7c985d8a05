"""Has detectron2's built-in COCO sets read by the project's own reader, as the sets of ``DATASETS.REGISTER`` are."""

from __future__ import annotations

import errno
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco import load_coco

# Not the "minival" ones of 2014: their files have the same annotations twice, which detectron2 knows and skips.
NAMES = (
    *("coco_2014_train", "coco_2014_val"),
    *("coco_2017_train", "coco_2017_val", "coco_2017_val_100", "coco_2017_test", "coco_2017_test-dev"),
)


def register_builtin_coco() -> None:
    """Registers the sets anew under their names; paths, class names and category ids stay detectron2's."""
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda name=name: _load(name))


def _load(name: str) -> list[dict]:
    """The records; their boxes are for ``records.load_records`` to check. OSError where the file is missing."""
    metadata = MetadataCatalog.get(name)
    if not os.path.exists(metadata.json_file):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), metadata.json_file)
    return load_coco(metadata.json_file, metadata.image_root, name, bad_boxes=None)
