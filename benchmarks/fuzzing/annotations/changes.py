"""A good annotation file, random changes of its content, and of its bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Change = Callable[[dict, np.random.Generator], None]

IMAGES, _OBJECTS, SIDE = 8, 4, 64
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
    images = [{"id": n + 1, "file_name": f"{n}.png", "width": SIDE, "height": SIDE - 8} for n in range(IMAGES)]
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


def pick(generator: np.random.Generator, values: Any) -> Any:
    """One of some values."""
    return values[int(generator.integers(len(values)))]


def _odd_value(contents: dict, generator: np.random.Generator) -> None:
    section = pick(generator, list(_KEYS))
    key, value = pick(generator, _KEYS[section]), pick(generator, _ODD)
    for item in _entries(contents, section, generator):
        item[key] = copy.deepcopy(value)


def _other_type(contents: dict, generator: np.random.Generator) -> None:
    """The same value as text, as a fraction, or in a list."""
    section = pick(generator, list(_KEYS))
    key = pick(generator, _KEYS[section])
    form: Callable[[Any], Any] = pick(generator, [str, lambda v: float(v) if type(v) is int else v, lambda v: [v]])
    for item in _entries(contents, section, generator):
        if key in item:
            item[key] = form(item[key])


def _missing_key(contents: dict, generator: np.random.Generator) -> None:
    section = pick(generator, list(_KEYS))
    key = pick(generator, _KEYS[section])
    for item in _entries(contents, section, generator):
        item.pop(key, None)


def _odd_section(contents: dict, generator: np.random.Generator) -> None:
    section = pick(generator, list(_KEYS))
    if generator.random() < 0.5:
        contents.pop(section, None)
    else:
        contents[section] = copy.deepcopy(pick(generator, [*_ODD, _objects_of(contents, section)[:1], [1], [[]]]))


def _repeated_entry(contents: dict, generator: np.random.Generator) -> None:
    section = pick(generator, list(_KEYS))
    for item in _entries(contents, section, generator)[:2]:
        again = copy.deepcopy(item)
        if generator.random() < 0.5:
            again["id"] = 1000 + int(generator.integers(1000))
        contents[section].append(again)


def _large_ids(contents: dict, generator: np.random.Generator) -> None:
    section, key = pick(generator, [("images", "image_id"), ("categories", "category_id")])
    offset = pick(generator, [2**31, 2**53, 2**60, -5, 10**30])
    form: Callable[[int], Any] = pick(generator, [int, str, lambda v: f"a{v}", float])
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
        lambda x, y, w, h: [x / SIDE, y / SIDE, w / SIDE, h / SIDE],
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
    form = pick(generator, forms)
    for item in _entries(contents, "annotations", generator):
        box = item.get("bbox")
        if isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}:
            item["bbox"] = form(*box)


def _odd_segmentations(contents: dict, generator: np.random.Generator) -> None:
    area = SIDE * (SIDE - 8)
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
        *([[float("nan")] * 6], [[1e300] * 6], {}, {"size": [1, 2]}, {"counts": "abc", "size": [SIDE - 8, SIDE]}),
        {"counts": [10, area - 10], "size": [SIDE - 8, SIDE]},
        {"counts": [10, 10], "size": [SIDE - 8, SIDE]},
        {"counts": [-1, "a"], "size": [SIDE - 8, SIDE]},
        {"counts": [10, area - 10], "size": ["56", None]},
        {"counts": "\u00e9\x00", "size": [SIDE - 8, SIDE]},
        {"counts": 5, "size": [SIDE - 8, SIDE]},
    ]
    value = pick(generator, values)
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
    form = pick(generator, forms)
    for item in _entries(contents, "images", generator):
        if isinstance(item.get("file_name"), str):
            item["file_name"] = form(item["file_name"])


CHANGES: tuple[Change, ...] = (
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


def as_bytes(contents: dict, generator: np.random.Generator) -> bytes:
    """The file: mostly UTF-8, at times another encoding, damaged, or with a section twice."""
    text = json.dumps(contents, ensure_ascii=bool(generator.random() < 0.8))
    if generator.random() < 0.05 and isinstance(contents.get("annotations"), list):
        text = text[:-1] + ', "annotations": []}'
    encoding = "utf-8"
    if generator.random() < 0.1:
        encoding = pick(generator, ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
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
                data[place] = ord(pick(generator, '0123456789.-e",[]{}'))
            if not data:
                break
    return bytes(data)
