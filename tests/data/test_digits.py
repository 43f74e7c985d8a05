import json
import sys
import threading
import time
from pathlib import Path

from detr_distill.data import DataError, build_digits, digit_pictures, digits, prepare
from detr_distill.data.digit_pictures import CANVAS, MAX_SIDE, draw_picture

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


def test_files_are_coco_format(digits_folders, annotations):
    contents = annotations["train"]
    assert [category["id"] for category in contents["categories"]] == list(range(1, 11))
    assert [category["name"] for category in contents["categories"]] == list("0123456789")
    assert len(contents["images"]) == 60
    for image in contents["images"]:
        pixels = cv2.imread(str(digits_folders["train"] / "images" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (CANVAS, CANVAS, 3)
    assert len({item["id"] for item in contents["annotations"]}) == len(contents["annotations"])
    per_image = np.bincount([item["image_id"] for item in contents["annotations"]])[1:]
    assert per_image.min() >= 1
    assert per_image.max() <= 6


def test_a_picture_depends_on_split_and_index_alone(digits_folders, tmp_path):
    picture, found = digits.draw_digits("train", 11)
    digits.draw_digits("val", 3)
    again, found_again = digits.draw_digits("train", 11)
    assert (picture == again).all()
    assert found == found_again
    assert not (picture == digits.draw_digits("val", 11)[0]).all()
    written = digits_folders["train"] / "images" / "000011.jpg"
    assert np.abs(cv2.imread(str(written)).astype(int) - picture).mean() < 4
    other = build_digits(tmp_path, "train", 12) / "images" / "000011.jpg"
    assert other.read_bytes() == written.read_bytes()


def test_splits_differ_in_more_than_handwriting(monkeypatch):
    samples = digits.split_samples("train")
    monkeypatch.setattr(digits, "split_samples", lambda split: samples)
    assert digits.draw_digits("train", 0)[1] != digits.draw_digits("val", 0)[1]


def test_splits_share_no_handwriting_and_are_stratified(annotations):
    found = {split: digits.split_samples(split) for split in ("train", "val", "test")}
    rows = {split: samples[2] for split, samples in found.items()}
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(1797))
    assert {split: len(chosen) for split, chosen in rows.items()} == {"train": 1437, "val": 180, "test": 180}
    shares = [np.bincount(labels, minlength=10) / len(labels) for _, labels, _ in found.values()]
    assert max(np.abs(shares[0] - share).max() for share in shares) < 0.005
    for split, chosen in rows.items():
        assert {item["sample"] for item in annotations[split]["annotations"]} <= set(chosen.tolist())


def test_category_is_the_digit_that_was_written(annotations):
    _, labels, ids = digits.split_samples("train")
    rows = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    assert all(item["category_id"] == rows[item["sample"]] + 1 for item in annotations["train"]["annotations"])


def test_boxes_lie_inside_the_canvas_and_hardly_overlap(annotations):
    boxes: dict[int, list] = {}
    for item in annotations["train"]["annotations"]:
        x, y, width, height = item["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= CANVAS
        assert 10 <= max(width, height) <= MAX_SIDE
        assert item["area"] == width * height
        for ox, oy, ow, oh in boxes.setdefault(item["image_id"], []):
            common = max(0, min(x + width, ox + ow) - max(x, ox)) * max(0, min(y + height, oy + oh) - max(y, oy))
            assert common <= 0.1 * (width * height + ow * oh - common)
        boxes[item["image_id"]].append((x, y, width, height))


def test_boxes_are_tight_on_ink(monkeypatch):
    """On a black canvas with white ink, the ink of a lone digit reaches every side of its box and ends there."""
    # No argument of the drawing leaves the background out, and on it faint ink could not be told from the texture.
    monkeypatch.setattr(digit_pictures, "_background", lambda rng: np.zeros((CANVAS, CANVAS, 3), np.uint8))
    monkeypatch.setattr(digit_pictures, "_draw_strokes", lambda rng, picture: None)
    samples = digits.split_samples("val")[0]
    alone = 0
    for seed in range(40):
        picture, found = draw_picture(np.random.default_rng(seed), samples)
        if len(found) != 1:
            continue
        alone += 1
        x, y, width, height = found[0].box
        contrast = picture.max(axis=2).astype(int) - 16  # the noise added to every picture stays below 16
        outside = contrast.copy()
        outside[y : y + height, x : x + width] = 0
        assert outside.max() <= 0
        box = contrast[y : y + height, x : x + width]
        sides = (box[0], box[-1], box[:, 0], box[:, -1])
        assert min(side.max() for side in sides) > 0.1 * box.max()
    assert alone >= 3


def test_digits_stand_out_from_the_background(annotations, digits_folders):
    """The centre of mass of colours differs between a box and the frame around it, in nearly all boxes."""
    visible = []
    for item in annotations["train"]["annotations"]:
        picture = cv2.imread(str(digits_folders["train"] / "images" / f"{item['image_id'] - 1:06d}.jpg")).astype(float)
        x, y, width, height = item["bbox"]
        box = picture[y : y + height, x : x + width].reshape(-1, 3)
        visible.append(np.linalg.norm(box.max(0) - box.min(0)) > 60)
    assert np.mean(visible) > 0.98


def test_what_an_interrupted_build_left_is_built_again(tmp_path):
    partial = tmp_path / "val_3.partial" / "images"
    partial.mkdir(parents=True)
    (partial / "stray.jpg").write_bytes(b"half")
    folder = build_digits(tmp_path, "val", 3)
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert not partial.exists()


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
    original = digits.draw_digits

    def fail_at_two(split, index):
        if index == 2:
            raise KeyboardInterrupt
        return original(split, index)

    monkeypatch.setattr(digits, "draw_digits", fail_at_two)
    with pytest.raises(KeyboardInterrupt):
        build_digits(tmp_path, "val", 4)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    monkeypatch.undo()
    assert len(list((build_digits(tmp_path, "val", 4) / "images").iterdir())) == 4


def test_builders_at_once_build_once(tmp_path, monkeypatch):
    calls = []
    original = digits.draw_digits

    def draw_slowly(*args):
        calls.append(args)
        time.sleep(0.05)
        return original(*args)

    monkeypatch.setattr(digits, "draw_digits", draw_slowly)
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(build_digits(tmp_path, "val", 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [("val", index) for index in range(5)]
    assert folders == [tmp_path / "val_5"] * 4


def test_registered_sets_are_made_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(digits.SPLITS, "val", 6)
    assert MetadataCatalog.get("digits_val").thing_classes == list("0123456789")
    assert prepare("coco_2017_val") is None
    assert prepare("digits_val") == tmp_path / "digits_v2" / "val"
    metadata = MetadataCatalog.get("digits_val")
    assert metadata.evaluator_type == "coco"
    assert len(json.loads(Path(metadata.json_file).read_text())["images"]) == 6
    records = DatasetCatalog.get("digits_val")
    assert len(records) == 6
    assert {item["category_id"] for record in records for item in record["annotations"]} <= set(range(10))


@pytest.mark.parametrize("content", [b'{"images": [', b"", b"\xff\xfe", b"[]", b"{}", None])
def test_a_damaged_annotation_file_is_named_with_the_remedy(tmp_path, monkeypatch, content):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path = tmp_path / "digits_v2" / "val" / "annotations" / "instances.json"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    for use in (prepare, DatasetCatalog.get):
        with pytest.raises(DataError, match=rf"{path} is damaged: .*Delete {path.parents[1]}; it is made again"):
            use("digits_val")


def test_errors_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no split 'mini'.*train, val, test"):
        build_digits(tmp_path, "mini")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/train.*DETECTRON2_DATASETS"):
        build_digits(tmp_path / "file", "train")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.split_samples.cache_clear()
    with pytest.raises(DataError, match="pip install scikit-learn"):
        build_digits(tmp_path, "val", 2)
