import copy
import json

from detr_distill.data import DataError, load_coco
from detr_distill.data.coco import read_class_names

import pytest
from detectron2.data import MetadataCatalog

CONTENTS = {
    "images": [
        {"id": 4, "file_name": "b.jpg", "width": 50, "height": 40},
        {"id": 9, "file_name": "sub/a.jpg", "width": 50, "height": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 7, "image_id": 4, "category_id": 3, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
        {"id": 8, "image_id": 4, "category_id": 17, "bbox": [-9, 0, 100, 50], "area": 9, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 17, "name": "owl"}],
}


@pytest.fixture
def write(tmp_path):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.jpg"):
        (images / name).write_bytes(b"")

    def writer(change=None, text=None):
        contents = copy.deepcopy(CONTENTS)
        if change is not None:
            change(contents)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(contents) if text is None else text)
        return path, images

    return writer


def test_gaps_in_category_ids_and_sub_folders_just_work(write):
    records = load_coco(*write(), "gaps_in_ids")
    assert MetadataCatalog.get("gaps_in_ids").thing_classes == ["dog", "owl", "cat"]
    assert MetadataCatalog.get("gaps_in_ids").thing_dataset_id_to_contiguous_id == {3: 0, 17: 1, 90: 2}
    assert [record["image_id"] for record in records] == [4, 9]
    assert [(item["id"], item["category_id"]) for item in records[0]["annotations"]] == [(1, 2), (7, 0), (8, 1)]
    assert records[0]["annotations"][2]["bbox"] == [-9, 0, 100, 50]  # a crowd
    assert records[1]["annotations"] == []
    assert records[1]["file_name"].endswith("images/sub/a.jpg")


def test_a_file_of_test_images_needs_no_annotations(write):
    records = load_coco(*write(lambda contents: contents.pop("annotations")), "bare_images")
    assert [record["annotations"] for record in records] == [[], []]


def test_missing_annotation_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json cannot be read: No such file.*DATASETS\.REGISTER"):
        load_coco(tmp_path / "gone.json", tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{'a'", "is not JSON"), ("", "is not JSON"), ("[1]", "holds a list")])
def test_not_an_object(write, text, message):
    with pytest.raises(DataError, match=rf"instances\.json {message}"):
        load_coco(*write(text=text))


def _set(section, index, key, value):
    return lambda contents: contents[section][index].__setitem__(key, value)


FAULTS = [
    (lambda contents: contents.pop("images"), r"no 'images' \(found: annotations, categories\)"),
    (lambda contents: contents.pop("categories"), "no 'categories'"),
    (lambda contents: contents["categories"].clear(), "no 'categories'"),
    (lambda contents: contents["images"][1].pop("width"), r"entry of 'images' lacks 'width': .*sub/a\.jpg"),
    (_set("images", 1, "id", 4), "ids used twice in 'images': 4"),
    (_set("annotations", 1, "id", 1), "ids used twice in 'annotations': 1"),
    (_set("annotations", 1, "image_id", 5), r"1 annotations have a image_id .*annotation 7 \(image_id 5\)"),
    (_set("annotations", 1, "category_id", 4), r"1 annotations have a category_id .*annotation 7 \(category_id 4\)"),
    (_set("annotations", 1, "bbox", [1, 2, 3]), r"has bbox \[1, 2, 3\]; expected four numbers.*'id': 7"),
    (_set("annotations", 1, "bbox", [1, 2, "3", 4]), r"has bbox \[1, 2, '3', 4\]; expected four numbers.*'id': 7"),
    (_set("annotations", 1, "id", "7"), "'annotations' has id '7'; expected a whole number"),
    (_set("annotations", 1, "image_id", [4]), r"has image_id \[4\]; expected a whole number.*'id': 7"),
    (_set("annotations", 1, "category_id", "3"), "has category_id '3'; expected a whole number.*'id': 7"),
    (_set("images", 1, "file_name", 9), r"'images' has file_name 9; expected a text.*Correct the entry: \{'id': 9"),
    (_set("images", 1, "width", "50"), r"'images' has width '50'; expected a positive number.*sub/a\.jpg"),
    (_set("images", 1, "height", 0), r"'images' has height 0; expected a positive number.*sub/a\.jpg"),
    (_set("categories", 1, "id", "3"), "'categories' has id '3'; expected a whole number.*dog"),
    (_set("categories", 1, "name", 3), "'categories' has name 3; expected a text"),
    (_set("categories", 1, "name", "cat"), "names used twice in 'categories': cat. Make them unique"),
    (_set("annotations", 1, "bbox", [1, 2, 0, 3]), r"annotation 7 of .*b\.jpg .*\[1, 2, 0, 3\](.|\n)*BAD_BOXES fix"),
    (_set("annotations", 1, "ignore", 1), '"ignore" in COCO json file is not supported'),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faulty_annotation_files_are_refused_by_name(write, change, message):
    with pytest.raises(DataError, match=rf"instances\.json(.|\n)*{message}"):
        load_coco(*write(change))


@pytest.mark.parametrize("value", ["nine", 9.5, None, True, [9], {"a": 9}])
def test_image_ids_that_evaluation_could_not_take_are_refused(write, value):
    def change(contents):
        contents["images"][1]["id"] = value

    with pytest.raises(DataError, match=r"instances\.json: an entry of 'images' has id .*expected a whole number"):
        load_coco(*write(change))


@pytest.mark.parametrize(("key", "value"), [("id", "3"), ("name", "cat")])
def test_class_names_alone_are_checked_too(write, key, value):
    with pytest.raises(DataError, match=rf"instances\.json: .*'categories'.*{value}"):
        read_class_names(write(_set("categories", 1, key, value))[0])


def test_bad_boxes_can_be_fixed(write):
    records = load_coco(*write(_set("annotations", 1, "bbox", [1, 2, 0, 3])), bad_boxes="fix")
    assert [item["id"] for item in records[0]["annotations"]] == [1, 8]


def test_missing_images_are_counted_and_named(write):
    path, images = write(
        lambda contents: contents["images"].append({**CONTENTS["images"][0], "id": 1, "file_name": "c/d.jpg"})
    )
    (images / "sub" / "a.jpg").unlink()
    with pytest.raises(
        DataError, match=r"images lacks 2 of the 3 images .*: sub/a\.jpg, c/d\.jpg\..*DATASETS\.REGISTER"
    ):
        load_coco(path, images)
