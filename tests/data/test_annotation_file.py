"""The reader of annotation files: forms that it takes, what it then returns, and how it names faults."""

from __future__ import annotations

import gc
import json
import math

from detr_distill.data import DataError
from detr_distill.data.annotations.file import read_annotation_file, read_class_names

import numpy as np
import pytest
from bad_input.annotations import contents


@pytest.fixture
def read(tmp_path):
    def reader(change=lambda content: None, encoding="utf-8"):
        path = tmp_path / "a.json"
        path.write_bytes(json.dumps(contents(change)).encode(encoding))
        return read_annotation_file(path)

    return reader


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_json(read, encoding):
    file = read(lambda c: c["categories"][0].update(name="größe"), encoding)
    assert file.names == ("größe", "dog")
    assert len(file.images) == 2 and len(file.annotations) == 12 and file.annotated and not file.warnings


@pytest.mark.parametrize(
    ("value", "flag"),
    [(0, 0), (1, 1), ("0", 0), ("1", 1), (False, 0), (True, 1), (1.0, 1), ("true", 1), (None, 0), ("", 0)],
)
def test_crowds_are_told_in_any_form(read, value, flag):
    file = read(lambda c: c["annotations"][3].update(iscrowd=value))
    assert [item["iscrowd"] for item in file.annotations] == [0, 0, 0, flag, *[0] * 8]
    assert all(type(item["iscrowd"]) is int for item in file.annotations)
    assert file.crowds.sum() == flag


@pytest.mark.parametrize("offset", [0, 2**31, 2**53, 2**60, 10**40, -9])
@pytest.mark.parametrize("form", [int, str, lambda value: f"img-{value}"])
def test_ids_of_any_size_keep_their_references(read, offset, form):
    def change(content):
        for number, image in enumerate(content["images"], 1):
            image["id"] = form(offset + number)
        for item in content["annotations"]:
            item["image_id"] = form(offset + item["id"] % 2 + 1)
            item["id"] = form(offset + item["id"])

    file = read(change)
    ids = [image["id"] for image in file.images]
    assert ids == ([form(offset + 1), form(offset + 2)] if isinstance(form(1), str) and form(1)[0] == "i" else ids)
    assert {item["image_id"] for item in file.annotations} == set(ids)
    assert len({item["id"] for item in file.annotations}) == 12


def test_numbers_as_text_are_numbers_and_said(read):
    def change(content):
        content["images"][0].update(width="100", height=80.0, id="1")
        content["annotations"][0].update(bbox=["1", 2, "3.5", 4e0], category_id="2", area="16")

    file = read(change)
    assert file.images[0] == {"id": 1, "file_name": "1.png", "width": 100, "height": 80}
    assert file.annotations[0]["bbox"] == [1, 2, 3.5, 4] and file.annotations[0]["category_id"] == 2
    assert file.areas[0] == file.annotations[0]["area"] == 16
    assert file.boxes.shape == (12, 4) and file.boxes[0].tolist() == [1, 2, 3.5, 4]
    assert len(file.warnings) == 5  # width, height, id, bbox, category_id
    assert all("written in another form (1)" in warning for warning in file.warnings)


@pytest.mark.parametrize("value", [None, "", "x", -4, 0, math.nan, math.inf, [400], {}, True, 10**400, 900])
def test_an_area_that_is_none_is_unknown(read, value):
    file = read(lambda c: c["annotations"][2].update(area=value))
    assert np.isnan(file.areas).tolist() == [number == 2 for number in range(12)]
    assert "area" not in file.annotations[2]
    assert len(file.warnings) == (value is not None)


def test_all_faults_are_counted_and_the_first_named(read):
    def change(content):
        for item in content["annotations"][:8]:
            item["iscrowd"] = "often"
        content["annotations"][9].pop("bbox")
        content["images"][1]["width"] = None

    with pytest.raises(DataError) as caught:
        read(change)
    message = str(caught.value)
    assert "whose iscrowd is not 0 or 1 (8): annotation 1: 'often', " in message
    assert "annotation 5: 'often' and 3 more" in message and "annotation 6" not in message
    assert "without 'bbox' (1): annotation 10: {" in message
    assert "whose width is not a positive whole number (1): image 2: None" in message
    assert "DATASETS" in message or "Correct these entries" in message


def test_ignored_crowds_and_values_of_no_effect_pass(read):
    file = read(lambda c: [c["annotations"][0].update(ignore=1, iscrowd=1), c["annotations"][1].update(ignore="0")])
    assert len(file.annotations) == 12


def test_a_section_that_is_named_inside_another_is_no_second_one(read):
    file = read(lambda c: c.update(info={"images": 2, "annotations": "by hand"}))
    assert len(file.annotations) == 12


def test_a_value_that_is_spelled_as_a_key_is_no_second_key(read):
    def change(content):
        content["categories"][0]["name"] = "bbox"
        content["annotations"][3]["attributes"] = {"id": 5, "area": "area", "id ": 6}

    assert read(change).names == ("bbox", "dog")


def test_class_names_need_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"categories": [{"id": 9, "name": "b"}, {"id": "2", "name": "a"}]}))
    assert read_class_names(path) == ("a", "b")
    path.write_text(json.dumps({"categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "b"}]}))
    with pytest.raises(DataError, match=r"names used twice in 'categories'.*\(1\): b"):
        read_class_names(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"info": {"about": "\\"categories\\""}, "categories" : [{"id": 1, "name": "a"}]}',
        '{"info": "categories", "categories": [{"id": 1, "name": "a"}], "images": 3}',
        '{"categories":\n [{"id": 1, "name": "a"}], "images": ',  # what follows is for those who need it
    ],
)
def test_class_names_are_found_wherever_they_stand(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert read_class_names(tmp_path / "a.json") == ("a",)


@pytest.mark.parametrize("fails", [False, True])
def test_the_garbage_collector_is_on_again(read, fails):
    if fails:
        with pytest.raises(DataError):
            read(lambda c: c.pop("images"))
    else:
        read()
    assert gc.isenabled()
