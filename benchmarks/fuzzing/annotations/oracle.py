"""What must be true of an annotation file that was taken: nothing of it is lost or changed on its way to a model."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from detr_distill.data import DetrDatasetMapper
from detr_distill.data.annotations.file import read_annotation_file
from detr_distill.data.records import load_records
from detr_distill.engine.evaluation import evaluate_boxes, ground_truth

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog


class _Said(logging.Handler):
    """Counts the objects that a warning says were dropped."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.dropped += sum(map(int, re.findall(r"(\d+) without area dropped", record.getMessage())))


def _is_crowd(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true")


def _number(value: Any) -> float:
    return float(value) if not isinstance(value, bool) else float("nan")


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int) or str(value).strip().lstrip("-").isdigit() else int(float(value))


def check_nothing_lost(path: Path, cfg: CfgNode) -> None:
    """Nothing of the file is lost or changed between its text and what a model gets."""
    said = _Said()
    logger = logging.getLogger("detr_distill.data")
    logger.addHandler(said)
    try:
        records = load_records(cfg)
    finally:
        logger.removeHandler(said)
    data = path.read_bytes()
    pairs: list[tuple[str, list]] = []

    def look(found: list[tuple[str, Any]]) -> dict:
        pairs.extend((key, value) for key, value in found if key == "annotations" and isinstance(value, list))
        return dict(found)

    contents = json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=look)
    items = [item for _, value in pairs for item in value]
    objects = [item for item in items if not _is_crowd(item.get("iscrowd"))]
    assert len(records) == len(contents["images"]), f"{len(records)} of {len(contents['images'])} images"
    mapper = DetrDatasetMapper(cfg, is_train=True)
    found = sum(len(mapper(record)["instances"]) for record in records)
    assert found + said.dropped == len(objects), f"{found} + {said.dropped} of {len(objects)} objects"
    _check_objects(records, contents, cfg)
    if not said.dropped:
        _evaluate(path, len(objects))


def _check_objects(records: list[dict], contents: dict, cfg: CfgNode) -> None:
    """Every object has the class and, where it lies in its image, the box of its entry."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    class_of = {_whole(item["id"]): item["name"] for item in contents["categories"]}
    entries: dict[str, Counter] = {}
    for item in contents["annotations"]:
        box = tuple(_number(value) for value in item["bbox"])
        entries.setdefault(class_of[_whole(item["category_id"])], Counter())[box] += 1
    for record in records:
        for item in record["annotations"]:
            box, name = tuple(map(float, item["bbox"])), names[item["category_id"]]
            x, y, width, height = box
            cut = min(x, y) <= 0 or x + width >= record["width"] or y + height >= record["height"]
            assert cut or entries[name][box] > 0, f"box {box} of class {name} is in no entry"


def _evaluate(path: Path, objects: int) -> None:
    """Perfect predictions are found perfect, whatever the ids and areas look like."""
    truth = ground_truth(read_annotation_file(path))
    assert all(item["area"] > 0 for item in truth["annotations"]), "an area of nothing"
    results = [
        {**{key: item[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for item in truth["annotations"]
        if not item["iscrowd"]
    ]
    evaluation = evaluate_boxes(truth, results, fast=True)
    assert not objects or evaluation.stats[1] > 0.99, f"AP50 of perfect predictions is {evaluation.stats[1]}"
