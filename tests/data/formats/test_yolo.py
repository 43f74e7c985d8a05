import json

from detr_distill.data import DataError
from detr_distill.data.formats import as_coco_file
from detr_distill.data.formats.yolo import read_yolo

import pytest
import yaml
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    as_coco_file.cache_clear()
    for name in ("images/train", "labels/train"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (40, 20)).save(tmp_path / "set" / "images" / "train" / f"{name}.jpg")
    describe(tmp_path, names=["cat", "dog"], train="images/train")
    return tmp_path


def describe(folder, **settings):
    (folder / "set" / "data.yaml").write_text(yaml.safe_dump(settings))


def label(folder, text, name="a"):
    (folder / "set" / "labels" / "train" / f"{name}.txt").write_text(text)


def read(folder, images="train"):
    return read_yolo(str(folder / "set" / "data.yaml"), images)


def test_shares_become_pixels_and_an_image_without_file_has_no_objects(folder):
    label(folder, "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.2 0.4\n")
    content = read(folder)
    assert [item["bbox"] for item in content["annotations"]] == [[15, 5, 10, 10], [0, 0, 8, 8]]
    assert [item["category_id"] for item in content["annotations"]] == [2, 1]
    assert {item["image_id"] for item in content["annotations"]} == {1}
    assert [image["file_name"].rpartition("/")[2] for image in content["images"]] == ["a.jpg", "b.jpg"]


def test_images_by_folder_and_labels_beside_them(folder):
    images = folder / "set" / "images" / "train"
    (images / "b.txt").write_text("0 0.5 0.5 1 1")
    assert read(folder, str(images))["annotations"][0]["bbox"] == [0, 0, 40, 20]


def test_names_as_dictionary(folder):
    describe(folder, names={1: "dog", 0: "cat"}, nc=2, path=".", train="images/train")
    assert [item["name"] for item in read(folder)["categories"]] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.1", r"a\.txt, line 2: 4 numbers"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9", r"a\.txt, line 1: 7 numbers .*polygon"),
        ("cat 0.5 0.5 0.1 0.1", r"a\.txt, line 1: .*not five numbers"),
        ("2 0.5 0.5 0.1 0.1", r"a\.txt, line 1: class 2, .*classes 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"a\.txt, line 1: class 0\.5"),
        ("0 20 10 5 5", r"a\.txt, line 1: .*not pixels"),
        ("0 nan 0.5 0.1 0.1", r"a\.txt, line 1: .*outside of 0 to 1"),
    ],
)
def test_faulty_lines_are_named(folder, text, words):
    label(folder, text)
    with pytest.raises(DataError, match=words):
        read(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": "images/train"}, r"data\.yaml has no 'names'"),
        ({"names": "cat", "train": "images/train"}, "expected a list of class names"),
        ({"names": {1: "cat"}, "train": "images/train"}, r"the numbers of 'names' are \[1\]"),
        ({"names": {0: "cat", "x": "dog"}, "train": "images/train"}, r"the numbers of 'names' are \[0, 'x'\]"),
        ({"names": ["cat", "cat"], "train": "images/train"}, r"data\.yaml names the class 'cat' more than once"),
        ({"names": ["cat", None], "train": "images/train"}, "'names' has None, which YAML does not read as a name"),
        ({"names": [["cat"]], "train": "images/train"}, r"'names' has \['cat'\], which"),
        ({"names": [True, False], "train": "images/train"}, "'names' has True, False, which"),
        ({"names": ["cat"], "path": 5, "train": "images/train"}, "'path' is 5; expected a folder"),
        ({"names": ["cat"], "nc": 2, "train": "images/train"}, "'nc' is 2"),
        ({"names": ["cat"]}, "'train' is None; expected one folder"),
        ({"names": ["cat"], "train": "images/nowhere"}, "there is no image folder"),
        ({"names": ["cat"], "train": "labels/train"}, "holds no image"),
    ],
)
def test_faulty_descriptions_are_named(folder, settings, words):
    describe(folder, **settings)
    with pytest.raises(DataError, match=words):
        read(folder)


def test_an_empty_path_is_the_file_s_own_folder(folder):
    label(folder, "1 0.5 0.5 0.25 0.5")
    expected = read(folder)
    describe(folder, names=["cat", "dog"], path=None, train="images/train")
    assert read(folder)["images"] == expected["images"]


def test_the_set_is_kept_as_coco_file(folder):
    label(folder, "1 0.5 0.5 0.25 0.5")
    file, _ = as_coco_file(str(folder / "set" / "data.yaml"), "train")
    with open(file) as opened:
        assert json.load(opened) == read(folder)
