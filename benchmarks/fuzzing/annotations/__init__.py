"""Random changes of a good annotation file, given to the reader, the records, the mapper and the evaluation."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from detr_distill.config.build import build_config

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .changes import CHANGES, IMAGES, SIDE, as_bytes, good_contents, pick
from .oracle import check_nothing_lost


def inputs(generator: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Changed annotation files without end; see the package."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(IMAGES):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((SIDE - 8, SIDE, 3), 90, np.uint8))
        path = folder / "instances.json"
        configurations = _configurations(path)
        while True:
            yield _one_input(generator, path, pick(generator, configurations))


def _configurations(path: Path) -> list[CfgNode]:
    """All values of the keys that decide what a file must hold; masks are trained in few of them."""
    name = f"fuzzed_{path.parent.name}"
    result = []
    for masks, bad_boxes, mask_format in itertools.product(
        (False, False, True), ("error", "fix"), ("polygon", "bitmask")
    ):
        cfg = build_config("", ["DATASETS.REGISTER", json.dumps([[name, str(path), str(path.parent)]])])
        cfg.DATASETS.TRAIN = (name,)
        cfg.DATASETS.BAD_BOXES, cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = bad_boxes, masks, mask_format
        cfg.INPUT.MIN_SIZE_TRAIN = (0,)
        result.append(cfg)
    return result


def _one_input(generator: np.random.Generator, path: Path, cfg: CfgNode) -> tuple[str, Callable[[], None]]:
    contents, changes = good_contents(generator), []
    for _ in range(int(generator.choice([0, 1, 1, 1, 2, 3]))):
        changes.append(pick(generator, CHANGES))
        changes[-1](contents, generator)
    data = as_bytes(contents, generator)

    def call() -> None:
        path.write_bytes(data)
        if cfg.DATASETS.TRAIN[0] in MetadataCatalog.list():
            MetadataCatalog.pop(cfg.DATASETS.TRAIN[0])  # it remembers the classes of the last file
        check_nothing_lost(path, cfg)

    names = ", ".join(change.__name__.strip("_") for change in changes) or "nothing"
    settings = f"masks {cfg.MODEL.MASK_ON}, bad boxes {cfg.DATASETS.BAD_BOXES}, {cfg.INPUT.MASK_FORMAT}"
    return f"{names}; {settings}: {data[:2000]!r}", call
