"""Training sets whose labels are a teacher's boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import register_configured
from detr_distill.data.predictions.store import PredictionStore
from detr_distill.data.records import load_records
from detr_distill.data.unlabeled import divide_labels
from detr_distill.detr.boxes import to_corners

import torch
from detectron2.data import MetadataCatalog
from photo_places import Places
from photo_rows import Collection

HARD_SCORE = 0.4  # from which on a teacher's box is taken for a label


def hard_labels(collection: Collection, share: float, seen: float, places: Places) -> list[str]:
    """KEY VALUE of a training set whose labels are the teacher's boxes, but for the share that has its own.

    With all labels the teacher's boxes replace all of them: what a user has whose images were never labelled.
    """
    name = f"{collection.name}_boxes_{share:g}_{seen:g}"
    cfg = build_config("", ["DATASETS.LABELED_SHARE", str(share), *collection.keys(1, places.part)])
    register_configured(cfg)
    records = load_records(cfg)
    own = () if share == 1 else {record["image_id"] for record in divide_labels(cfg, records)[0]}
    source = json.loads(Path(annotation_file(collection)).read_text())
    kept = [item for item in source["annotations"] if item["image_id"] in own]
    store = PredictionStore(places.predictions(collection, seen))
    others = [image for image in source["images"] if image["id"] not in own]
    found = list(box_labels(store, others, [category["id"] for category in source["categories"]]))
    annotations = [{**item, "id": number} for number, item in enumerate([*kept, *found], 1)]
    file = places.work / "boxes" / f"{name}_{os.getpid()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**source, "annotations": annotations}))
    folder = next(iter(Path(record["file_name"]).parent for record in records))
    entries = [list(entry) for entry in collection.entries] + [[name, str(file), str(folder)]]
    return ["DATASETS.REGISTER", str(entries), "DATASETS.TRAIN", str([name])]


def annotation_file(collection: Collection) -> str:
    """Of the training part."""
    return MetadataCatalog.get(collection.train).json_file


def box_labels(store: PredictionStore, images: Iterable[dict], categories: list[int]) -> Iterable[dict]:
    """The last layer's boxes of a score of ``HARD_SCORE`` or more as COCO annotations, one class each."""
    for image in images:
        found = store.read([image["id"]])
        best, classes = found.logits[-1, 0].sigmoid().max(-1)
        sides = torch.tensor([image["width"], image["height"]]).repeat(2)
        corners = to_corners(found.boxes[-1, 0]).clamp(0, 1) * sides
        for row in torch.nonzero(best >= HARD_SCORE).flatten().tolist():
            x1, y1, x2, y2 = corners[row].tolist()
            box = [x1, y1, x2 - x1, y2 - y1]
            if min(box[2:]) > 0:
                yield {
                    "image_id": image["id"],
                    "category_id": categories[int(classes[row])],
                    "iscrowd": 0,
                    "bbox": box,
                    "area": box[2] * box[3],
                }
