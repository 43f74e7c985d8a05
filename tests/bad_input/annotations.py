"""Annotation files, boxes, masks and images that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detr_distill.data import load_coco, read_image
from detr_distill.data.annotations.file import read_annotation_file, read_class_names
from detr_distill.data.annotations.masks import check_masks
from detr_distill.data.image import check_eight_bits

import cv2
import numpy as np
from PIL import Image

from . import Row


def contents(change: Callable[[dict], object] = lambda content: None, boxes: int = 12) -> dict:
    """A good file of a 100 x 80 image with squares of 20 pixels, after a change."""
    result = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in (1, 2)],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": [5 * n, 2 * n, 20, 20], "area": 400, "iscrowd": 0}
            for n in range(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    change(result)
    return result


def _read(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "a.json").write_text(json.dumps(contents(change)))
        return read_annotation_file(folder / "a.json")

    return call


def _load(change: Callable[[dict], object], bad_boxes: str = "error") -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "a.json").write_text(json.dumps(contents(change)))
        for name in ("1.png", "2.png"):
            (folder / name).write_bytes(b"")
        return load_coco(folder / "a.json", folder, bad_boxes=bad_boxes)

    return call


def _bytes(data: bytes) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        (folder / "a.json").write_bytes(data)
        return read_annotation_file(folder / "a.json")

    return call


def _set(section: str, key: str, value: object, index: int = 1) -> Callable[[dict], object]:
    return lambda content: content[section][index].__setitem__(key, value)


def _boxes(form: Callable[..., list]) -> Callable[[dict], object]:
    def change(content: dict) -> None:
        for item in content["annotations"]:
            item["bbox"] = form(*item["bbox"])

    return change


def _image(name: str, write: Callable[[Path], object]) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        write(folder / name)
        return read_image(str(folder / name))

    return call


def _masks(segmentation: object, mask_format: str = "polygon") -> Callable[[Path], object]:
    item = {"id": 7, "segmentation": segmentation} if segmentation is not None else {"id": 7}
    return lambda folder: check_masks(
        [{"file_name": "a", "height": 8, "width": 9, "annotations": [item]}], mask_format, "s"
    )


_CODE = {"size": [8, 9], "counts": "000"}

ROWS = [
    Row(
        "no such file", lambda folder: read_annotation_file(folder / "gone.json"), r"gone\.json cannot be read: No such"
    ),
    Row("null character in a path", lambda folder: read_annotation_file("a\0.json"), "cannot be read: embedded null"),
    Row(
        "latin-1", _bytes('{"images": ["é"]}'.encode("latin-1")), r"encoding that JSON does not know.*save it as UTF-8"
    ),
    Row("compressed", _bytes(b"\x1f\x8b\x08"), r"is a compressed archive\. Unpack it"),
    Row("empty", _bytes(b""), r"is not JSON.*It is empty\. Restore it"),
    Row(
        "git lfs pointer", _bytes(b"version https://git-lfs.github.com/spec/v1\n"), r"pointer of Git LFS.*git lfs pull"
    ),
    Row("deep nesting", _bytes(b"[" * 100_000), r"nested too deeply"),
    Row("a list", _bytes(b"[1]"), r"holds a list; COCO's format is an object"),
    Row(
        "a section twice",
        _bytes(b'{"images": [1], "images": []}'),
        r"keys more than once in one object.*\(1\): images\. Join them",
    ),
    Row(
        "a key twice in an object",
        _bytes(b'{"images": [], "annotations": [{"id": 7, "bbox": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}]}'),
        r"keys more than once in one object.*\(1\): bbox \(id 7\)\. Join them, or take one out",
    ),
    Row(
        "a long id",
        _read(lambda c: c["annotations"][0].update(id="9" * 4000, bbox=[1])),
        r"\(1\): annotation 9{37}\.\.\.: \[1\]",
    ),
    Row(
        "no images", _read(lambda c: c.pop("images")), r"section 'images' is missing.*found 'annotations', 'categories'"
    ),
    Row("no class", _read(lambda c: c["categories"].clear()), r"section 'categories' is missing, empty or no list"),
    Row(
        "an entry of another type",
        _read(lambda c: c["images"].append(3)),
        r"that are no objects \(1\): image number 3: 3",
    ),
    Row("a key is missing", _read(lambda c: c["images"][1].pop("width")), r"without 'width' \(1\): image 2: \{'id': 2"),
    Row("an id is null", _read(_set("images", "id", None)), r"'images' whose id is not a whole number or a text \(1\)"),
    Row("an id is a truth value", _read(_set("annotations", "id", True)), r"'annotations' whose id is not a whole"),
    Row(
        "an id was rounded",
        _read(_set("images", "id", 2.0**60)),
        r"'images' whose id is not a whole number.*1\.15.*e\+18",
    ),
    Row(
        "an id of a class is a text",
        _read(_set("categories", "id", "a")),
        r"'categories' whose id is not a whole number",
    ),
    Row("ids twice", _read(_set("annotations", "id", "1")), r"ids used twice in 'annotations'.*\(1\): 1"),
    Row("names twice", _read(_set("categories", "name", "cat ")), r"names used twice in 'categories'.*\(1\): cat"),
    Row(
        "one name in two codes",
        _read(lambda c: c.update(categories=[{"id": 1, "name": "\xe9"}, {"id": 2, "name": "e\u0301"}])),
        r"names used twice in 'categories'",
    ),
    Row("a name is blank", _read(_set("categories", "name", " ")), r"whose name is not a text \(1\): category 2: ' '"),
    Row("half a surrogate", _read(_set("categories", "name", "\ud800")), r"whose name is not a text.*'\\ud800'"),
    Row(
        "one file under two ids", _read(_set("images", "file_name", "./1.png")), r"under two ids.*joined.*\(1\): 1\.png"
    ),
    Row(
        "an image without a width",
        _read(_set("images", "width", 0)),
        r"whose width is not a positive whole number.*: 0",
    ),
    Row(
        "a fraction of a pixel",
        _read(_set("images", "height", 8.5)),
        r"whose height is not a positive whole number.*8\.5",
    ),
    Row(
        "an unknown image",
        _read(_set("annotations", "image_id", 5)),
        r"image_id 'images' does not hold \(1\): annotation 2",
    ),
    Row(
        "an unknown class",
        _read(_set("annotations", "category_id", 9)),
        r"category_id 'categories' does not hold \(1\)",
    ),
    Row(
        "three numbers",
        _read(_set("annotations", "bbox", [1, 2, 3])),
        r"whose bbox is not four finite numbers \(1\): annotation 2",
    ),
    Row(
        "a box of words",
        _read(_set("annotations", "bbox", [1, 2, "x", 3])),
        r"whose bbox is not four finite numbers.*'x'",
    ),
    Row(
        "a number too large",
        _read(_set("annotations", "bbox", [1, 2, 10**400, 3])),
        r"whose bbox is not four finite numbers",
    ),
    Row("iscrowd 2", _read(_set("annotations", "iscrowd", 2)), r"whose iscrowd is not 0 or 1 \(1\): annotation 2: 2"),
    Row("iscrowd maybe", _read(_set("annotations", "iscrowd", "maybe")), r"whose iscrowd is not 0 or 1.*'maybe'"),
    Row("ignored", _read(_set("annotations", "ignore", 1)), r"ignore 1.*give them iscrowd 1.*\(1\): annotation 2"),
    Row("class names alone", lambda folder: read_class_names(folder / "gone.json"), r"gone\.json cannot be read"),
    Row(
        "corners",
        _load(_boxes(lambda x, y, w, h: [x, y, x + w, y + h])),
        r"look like corners x1, y1, x2, y2 in pixels: write them as x, y, width, height in pixels\.",
    ),
    Row(
        "corners without a remedy that is none",
        _load(_boxes(lambda x, y, w, h: [x + 25, y + 20, x + 25 + w, y + 20 + h])),
        r"(?s)lie outside.*look like corners [^\n]* in pixels\.$",
    ),
    Row(
        "sides in pairs",
        _load(_boxes(lambda x, y, w, h: [x + 25, x + 25 + w, y + 20, y + 20 + h]), "fix"),
        r"look like x1, x2, y1, y2",
    ),
    Row(
        "areas of larger boxes",
        _load(lambda c: [item.update(bbox=[value / 2 for value in item["bbox"]]) for item in c["annotations"]]),
        r"12 of 12 areas are larger than their boxes, by a median factor of 4: .*resized since \(by 2 in width",
    ),
    Row(
        "corners, fixed",
        _load(_boxes(lambda x, y, w, h: [x + 25, y + 20, x + 25 + w, y + 20 + h]), "fix"),
        r"(?s)boxes leave their image.*look like corners x1, y1, x2, y2",
    ),
    Row(
        "corners that fit",
        _load(_boxes(lambda x, y, w, h: [x / 4, y / 4, x / 4 + w, y / 4 + h])),
        r"area of another box.*look like corners",
    ),
    Row(
        "centres, fixed",
        _load(_boxes(lambda x, y, w, h: [x + 35, y + 48, 20, 20]), "fix"),
        r"look like centre x, centre y",
    ),
    Row(
        "fractions",
        _load(_boxes(lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80])),
        r"fractions of the image's sides",
    ),
    Row(
        "fractions, fixed",
        _load(_boxes(lambda x, y, w, h: [x / 100, y / 80, 0.2, 0.2]), "fix"),
        r"fractions of the image's",
    ),
    Row(
        "boxes of nothing known",
        _load(_boxes(lambda x, y, w, h: [x, 900, w, h]), "fix"),
        r"12 of 12 boxes leave their image.*fit no convention that is known: .*Compare some with their pictures",
    ),
    Row(
        "boxes of nothing known, not fixed",
        _load(_boxes(lambda x, y, w, h: [x, 900, w, h])),
        r"(?s)12 of 12 boxes have no area.*Compare some with their pictures, and write all as [^\n]*$",
    ),
    Row(
        "a box of not a number",
        _read(_set("annotations", "bbox", [float("nan"), 1, 2, 3])),
        r"not four finite numbers.*nan",
    ),
    Row("a box too thin to keep", _load(_set("annotations", "bbox", [1, 1, 1e-6, 3])), r"1 of 12 boxes have no area"),
    Row(
        "image files are missing",
        lambda folder: _load(lambda c: c["images"].append({**c["images"][0], "id": 3, "file_name": "a\\b.png"}))(
            folder
        ),
        r"lacks 1 of the 3 images.*backslashes: write them with /",
    ),
    Row("no mask", _masks(None), r"1 objects have no segmentation: annotation 7 of a.*MODEL\.MASK_ON False"),
    Row(
        "a code for polygons",
        _masks(_CODE),
        r"INPUT\.MASK_FORMAT is polygon.*annotation 7.*Set INPUT\.MASK_FORMAT bitmask",
    ),
    Row("a code of another size", _masks(_CODE, "bitmask"), r"no mask of their image: annotation 7"),
    Row("a polygon of not a number", _masks([[1, 2, 3, 4, 5, float("nan")]]), r"no mask of their image: annotation 7"),
    Row(
        "an image of no range",
        _image("a.tif", lambda p: cv2.imwrite(str(p), np.full((9, 9), 7e4, np.float32))),
        r"a\.tif has float32 values from 70000 to 70000, which show no known range\. Save it with 8 bits",
    ),
    Row(
        "negative light",
        _image("a.tif", lambda p: cv2.imwrite(str(p), np.linspace(-1, 1, 81, dtype=np.float32).reshape(9, 9))),
        r"a\.tif has float32 values from -1 to 1",
    ),
    Row(
        "next to no light",
        _image("a.tif", lambda p: cv2.imwrite(str(p), np.linspace(0, 0.02, 81, dtype=np.float32).reshape(9, 9))),
        r"a\.tif has float32 values from 0 to 0\.02, which show no known range",
    ),
    Row(
        "an image cut short",
        _image(
            "a.png", lambda p: p.write_bytes(cv2.imencode(".png", np.zeros((99, 99, 3), np.uint8))[1].tobytes()[:-30])
        ),
        r"a\.png .*damaged, cut short",
    ),
    Row("no image", _image("a.jpg", lambda p: p.write_text("text")), r"a\.jpg .*not an image"),
    Row(
        "a deep image for Pillow",
        lambda folder: (
            Image.fromarray(np.full((9, 9), 999, np.uint16)).save(folder / "a.png"),
            check_eight_bits(str(folder / "a.png")),
        ),
        r"a\.png has more than 8 bits.*Set INPUT\.MAPPER detr",
    ),
]
