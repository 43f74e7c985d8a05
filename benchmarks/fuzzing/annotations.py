"""Random changes of a good annotation file, given to the reader, the records, the mapper and the evaluation."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detr_distill.config.build import build_config
from detr_distill.data import DetrDatasetMapper
from detr_distill.data.annotations.file import read_annotation_file
from detr_distill.data.records import load_records
from detr_distill.engine.evaluation import evaluate_boxes, ground_truth

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

Change = Callable[[dict, np.random.Generator], None]

_IMAGES, _OBJECTS, _SIDE = 8, 4, 64
_ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 7, 2**31, 2**53 + 1, 2**64, 10**400, 0.5, 1.0, 1e-9, 1e300, -0.0),
    *(float("nan"), float("inf"), "", " ", "0", "1", "7", "1.0", "007", "abc", "nan", "None", "é", "e\u0301", "\ud800"),
    *([], [None], [1], {}, {"a": 1}, [[]], [[[]]]),
]
_KEYS = {
    "images": ("id", "file_name", "width", "height", "license"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation", "keypoints"),
    "categories": ("id", "name", "supercategory"),
}


def good_contents(generator: np.random.Generator) -> dict:
    """A file without a fault: squares with areas and polygons, one crowd."""
    images = [{"id": n + 1, "file_name": f"{n}.png", "width": _SIDE, "height": _SIDE - 8} for n in range(_IMAGES)]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for _ in range(_OBJECTS):
            x, y, width, height = (int(value) for value in generator.integers([0, 0, 4, 4], [30, 30, 30, 20]))
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(generator.integers(1, 4)),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(len(annotations) == 5),
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": n, "name": name} for n, name in enumerate(("cat", "dog", "owl"), 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _entries(contents: dict, section: str, generator: np.random.Generator) -> list[dict]:
    """One entry, some, or all."""
    items = _objects_of(contents, section)
    if not items or generator.random() < 0.3:
        return items
    return [items[i] for i in generator.integers(len(items), size=int(generator.choice([1, 1, 3, 8])))]


def _objects_of(contents: dict, section: str) -> list[dict]:
    """The entries of a section, which an earlier change may have made anything."""
    items = contents.get(section)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _pick(generator: np.random.Generator, values: Any) -> Any:
    return values[int(generator.integers(len(values)))]


def _odd_value(contents: dict, generator: np.random.Generator) -> None:
    section = _pick(generator, list(_KEYS))
    key, value = _pick(generator, _KEYS[section]), _pick(generator, _ODD)
    for item in _entries(contents, section, generator):
        item[key] = copy.deepcopy(value)


def _other_type(contents: dict, generator: np.random.Generator) -> None:
    """The same value as text, as a fraction, or in a list."""
    section = _pick(generator, list(_KEYS))
    key = _pick(generator, _KEYS[section])
    form: Callable[[Any], Any] = _pick(generator, [str, lambda v: float(v) if type(v) is int else v, lambda v: [v]])
    for item in _entries(contents, section, generator):
        if key in item:
            item[key] = form(item[key])


def _missing_key(contents: dict, generator: np.random.Generator) -> None:
    section = _pick(generator, list(_KEYS))
    key = _pick(generator, _KEYS[section])
    for item in _entries(contents, section, generator):
        item.pop(key, None)


def _odd_section(contents: dict, generator: np.random.Generator) -> None:
    section = _pick(generator, list(_KEYS))
    if generator.random() < 0.5:
        contents.pop(section, None)
    else:
        contents[section] = copy.deepcopy(_pick(generator, [*_ODD, _objects_of(contents, section)[:1], [1], [[]]]))


def _repeated_entry(contents: dict, generator: np.random.Generator) -> None:
    section = _pick(generator, list(_KEYS))
    for item in _entries(contents, section, generator)[:2]:
        again = copy.deepcopy(item)
        if generator.random() < 0.5:
            again["id"] = 1000 + int(generator.integers(1000))
        contents[section].append(again)


def _large_ids(contents: dict, generator: np.random.Generator) -> None:
    section, key = _pick(generator, [("images", "image_id"), ("categories", "category_id")])
    offset = _pick(generator, [2**31, 2**53, 2**60, -5, 10**30])
    form: Callable[[int], Any] = _pick(generator, [int, str, lambda v: f"a{v}", float])
    for item in _objects_of(contents, section):
        _renew(item, "id", offset, form)
    for item in _objects_of(contents, "annotations"):
        _renew(item, key, offset, form)


def _renew(item: dict, key: str, offset: int, form: Callable[[int], Any]) -> None:
    if type(item.get(key)) is int:
        item[key] = form(item[key] + offset)


def _odd_boxes(contents: dict, generator: np.random.Generator) -> None:
    forms: list[Callable[[float, float, float, float], list]] = [
        lambda x, y, w, h: [x, y, x + w, y + h],
        lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
        lambda x, y, w, h: [x / _SIDE, y / _SIDE, w / _SIDE, h / _SIDE],
        lambda x, y, w, h: [x + 1000, y, w, h],
        lambda x, y, w, h: [x, y, 0, h],
        lambda x, y, w, h: [x, y, 1e-6, h],
        lambda x, y, w, h: [x, y, -w, h],
        lambda x, y, w, h: [str(x), str(y), str(w), str(h)],
        lambda x, y, w, h: [x, y, w],
        lambda x, y, w, h: [float("nan"), y, w, h],
        lambda x, y, w, h: [x, y, float("inf"), h],
        lambda x, y, w, h: [x, y, w + 60, h],
    ]
    form = _pick(generator, forms)
    for item in _entries(contents, "annotations", generator):
        box = item.get("bbox")
        if isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}:
            item["bbox"] = form(*box)


def _odd_segmentations(contents: dict, generator: np.random.Generator) -> None:
    area = _SIDE * (_SIDE - 8)
    values = [
        *(
            [],
            [[]],
            "none",
            [[1, 2, 3, 4]],
            [[1, 2, 3, 4, 5]],
            [[1, 2, 3, 4, 5, "6"]],
            [[1, 2, 3, 4, 5, None]],
            [1, 2, 3, 4],
        ),
        *([[float("nan")] * 6], [[1e300] * 6], {}, {"size": [1, 2]}, {"counts": "abc", "size": [_SIDE - 8, _SIDE]}),
        {"counts": [10, area - 10], "size": [_SIDE - 8, _SIDE]},
        {"counts": [10, 10], "size": [_SIDE - 8, _SIDE]},
        {"counts": [-1, "a"], "size": [_SIDE - 8, _SIDE]},
        {"counts": [10, area - 10], "size": ["56", None]},
        {"counts": "\u00e9\x00", "size": [_SIDE - 8, _SIDE]},
        {"counts": 5, "size": [_SIDE - 8, _SIDE]},
    ]
    value = _pick(generator, values)
    for item in _entries(contents, "annotations", generator):
        item["segmentation"] = copy.deepcopy(value)
        if generator.random() < 0.5:
            item.pop("area", None)


def _odd_file_names(contents: dict, generator: np.random.Generator) -> None:
    forms: list[Callable[[str], Any]] = [
        lambda name: f"./{name}",
        lambda name: f".\\{name}",
        lambda name: f"../{name}",
        lambda name: name.upper(),
        lambda name: f"{name}\0",
        lambda name: "0.png",
        lambda name: ".",
    ]
    form = _pick(generator, forms)
    for item in _entries(contents, "images", generator):
        if isinstance(item.get("file_name"), str):
            item["file_name"] = form(item["file_name"])


_CHANGES: tuple[Change, ...] = (
    *(
        _odd_value,
        _odd_value,
        _other_type,
        _missing_key,
        _odd_section,
        _repeated_entry,
        _large_ids,
        _odd_boxes,
        _odd_boxes,
    ),
    *(_odd_segmentations, _odd_file_names),
)


def _as_bytes(contents: dict, generator: np.random.Generator) -> bytes:
    """The file: mostly UTF-8, at times another encoding, damaged, or with a section twice."""
    text = json.dumps(contents, ensure_ascii=bool(generator.random() < 0.8))
    if generator.random() < 0.05 and isinstance(contents.get("annotations"), list):
        text = text[:-1] + ', "annotations": []}'
    encoding = "utf-8"
    if generator.random() < 0.1:
        encoding = _pick(generator, ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
    data = bytearray(text.encode(encoding, "ignore" if encoding == "latin-1" else "surrogatepass"))
    if generator.random() < 0.2:
        for _ in range(int(generator.integers(1, 4))):
            place = int(generator.integers(len(data)))
            form = generator.integers(4)
            if form == 0:
                data[place] = int(generator.integers(256))
            elif form == 1:
                del data[place : place + int(generator.integers(1, 20))]
            elif form == 2:
                data[place:place] = data[place : place + int(generator.integers(1, 200))]
            else:
                data[place] = ord(_pick(generator, '0123456789.-e",[]{}'))
            if not data:
                break
    return bytes(data)


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


def _check(path: Path, cfg: CfgNode) -> None:
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


def inputs(generator: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Changed annotation files without end; see the package."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(_IMAGES):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((_SIDE - 8, _SIDE, 3), 90, np.uint8))
        path = folder / "instances.json"
        configurations = _configurations(path)
        while True:
            yield _one_input(generator, path, _pick(generator, configurations))


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
        changes.append(_pick(generator, _CHANGES))
        changes[-1](contents, generator)
    data = _as_bytes(contents, generator)

    def call() -> None:
        path.write_bytes(data)
        if cfg.DATASETS.TRAIN[0] in MetadataCatalog.list():
            MetadataCatalog.pop(cfg.DATASETS.TRAIN[0])  # it remembers the classes of the last file
        _check(path, cfg)

    names = ", ".join(change.__name__.strip("_") for change in changes) or "nothing"
    settings = f"masks {cfg.MODEL.MASK_ON}, bad boxes {cfg.DATASETS.BAD_BOXES}, {cfg.INPUT.MASK_FORMAT}"
    return f"{names}; {settings}: {data[:2000]!r}", call
