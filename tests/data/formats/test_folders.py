"""Folders of data are recognised, and what is none of the formats or two at once is not guessed at."""

import json
from pathlib import Path

from detr_distill.data.formats import Format, as_coco_file, find_other_part, find_set
from detr_distill.errors import DataError

import pytest
from helpers.data.layouts import coco, picture, voc, yolo

DESCRIBED = "names: [cat]\ntrain: images/train\nval: images/val\n"


def find(folder, part="train"):
    """Where a part is, both places relative to the folder where they are inside, and its format."""
    source = find_set(str(folder), part, f"--{part}")
    content = json.loads(Path(as_coco_file(source.annotations, source.images)[0]).read_text())
    assert content["images"] and content["categories"], "its reader cannot read it"
    return tuple(text.replace(f"{folder}/", "") for text in source[:2]), source.form


def test_coco_as_it_is_published(tmp_path):
    for part in ("train", "val"):
        coco(tmp_path, f"annotations/instances_{part}2017.json", f"{part}2017")
    (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    assert find(tmp_path) == (
        ("annotations/instances_train2017.json", f"{tmp_path}/train2017"[len(f"{tmp_path}/") :]),
        Format.COCO,
    )
    assert find(tmp_path, "val")[0] == ("annotations/instances_val2017.json", "val2017")
    assert find_other_part(str(tmp_path), "val", "--train") == find_set(str(tmp_path), "val", "--val")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
        ("labels.json", "."),
        ("a/train.json", "images/train"),
    ],
)
def test_images_of_coco_are_looked_for_around_the_file(tmp_path, annotations, images):
    file = coco(tmp_path, annotations, images)
    source = find_set(str(file), "train", "--train")
    assert source.form is Format.COCO and (tmp_path / images).samefile(source.images)


def test_a_part_of_its_own_folder(tmp_path):
    for part in ("train", "valid"):
        coco(tmp_path, f"{part}/_annotations.coco.json", part)
    assert find(tmp_path)[0] == ("train/_annotations.coco.json", "train")
    other = find_other_part(str(tmp_path), "val", "--train")
    assert other is not None and other.annotations.endswith("valid/_annotations.coco.json")
    assert find_other_part(str(tmp_path / "train"), "val", "--train") is None


def test_voc_with_lists_and_without(tmp_path):
    folder = voc(tmp_path / "lists", train="a", val="b")
    assert find(folder) == (("ImageSets/Main/train.txt", "JPEGImages"), Format.VOC)
    assert find(folder, "val")[0] == ("ImageSets/Main/val.txt", "JPEGImages")
    listed = find_set(str(folder / "ImageSets" / "Main" / "val.txt"), "val", "--val")
    assert listed == find_set(str(folder), "val", "--val")
    plain = voc(tmp_path / "plain", images="images")
    assert find(plain)[0] == ("Annotations", "images") and find_other_part(str(plain), "val", "--train") is None
    beside = voc(tmp_path / "beside", "images/train", "images/train")
    assert find(beside)[0] == ("images/train", "images/train")


def test_yolo_by_its_file_or_by_one_above(tmp_path):
    folder = yolo(tmp_path / "described", DESCRIBED)
    assert find(folder) == (("data.yaml", "train"), Format.YOLO)
    assert find_other_part(str(folder), "val", "--train") == find_set(str(folder / "data.yaml"), "val", "--val")
    roboflow = tmp_path / "roboflow"
    for part in ("train", "valid"):
        picture(roboflow / part / "images" / "a.jpg")
        (roboflow / part / "labels").mkdir()
        (roboflow / part / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    (roboflow / "data.yaml").write_text("names: [cat]\ntrain: ../train/images\nval: ../valid/images\n")
    assert find(roboflow)[0] == ("data.yaml", "train/images")
    assert find(roboflow, "val")[0] == ("data.yaml", "valid/images")
    assert find(roboflow / "train")[0] == (f"{roboflow}/data.yaml", "images")


def test_the_folder_of_images_can_be_named(tmp_path):
    file = coco(tmp_path, "labels/x.json", "somewhere/else")
    with pytest.raises(DataError, match=r"first image, a.png, is in none of the folders .*--train-images"):
        find_set(str(file), "train", "--train")
    images = str(tmp_path / "somewhere" / "else")
    assert find_set(str(file), "train", "--train", images).images == images
