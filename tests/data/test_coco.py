import copy
import json
import logging

from detr_distill.data import DataError, load_coco

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

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

    def writer(change=None):
        contents = copy.deepcopy(CONTENTS)
        if change is not None:
            change(contents)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(contents))
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


def _set(section, index, key, value):
    return lambda contents: contents[section][index].__setitem__(key, value)


@pytest.mark.parametrize(("share", "said"), [(0.25, True), (0.5, False), (1, False)])
def test_areas_that_are_one_small_share_of_their_boxes_are_warned_of(write, caplog, share, said):
    def change(contents):
        first = contents["annotations"][0]
        for number in range(10, 15):
            box = [1, 2, number, number + 5]
            contents["annotations"].append({**first, "id": number, "bbox": box, "area": box[2] * box[3] * share})
        contents["annotations"][:2] = []

    load_coco(*write(change))
    assert ("nearly all areas are 0.25 times their boxes" in caplog.text) == said


FAULTS = [
    (lambda contents: contents["images"][1].pop("width"), r"'images' without 'width' \(1\): image 9: .*sub/a\.jpg"),
    (_set("annotations", 1, "image_id", 5), r"image_id 'images' does not hold \(1\): annotation 7 \(image_id 5\)"),
    (_set("annotations", 1, "bbox", [1, 2, 0, 3]), r"annotation 7 of .*b\.jpg .*\[1, 2, 0, 3\](.|\n)*BAD_BOXES fix"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faulty_annotation_files_are_refused_by_name(write, change, message):
    with pytest.raises(DataError, match=rf"instances\.json(.|\n)*{message}"):
        load_coco(*write(change))


def test_records_are_those_of_detectron2(write):
    ours = load_coco(*write(), "ours")
    theirs = load_coco_json(*map(str, write()), "theirs", extra_annotation_keys=["id"])
    assert ours == theirs
    assert list(ours[0]) == list(theirs[0])
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert MetadataCatalog.get("ours").get(key) == MetadataCatalog.get("theirs").get(key)


def test_a_file_without_annotations_is_for_tests_alone(write):
    records = load_coco(*write(lambda contents: contents.pop("annotations")))
    assert [sorted(record) for record in records] == [["file_name", "height", "image_id", "width"]] * 2


def test_what_is_read_in_spite_of_its_form_is_said_once(write, caplog):
    def change(contents):
        for item in contents["annotations"]:
            item["iscrowd"] = str(item["iscrowd"])

    with caplog.at_level(logging.WARNING):
        records = load_coco(*write(change))
    assert [item["iscrowd"] for item in records[0]["annotations"]] == [0, 0, 1]
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "whose iscrowd was written in another form (3): annotation 1: '0' as 0" in message


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4]], [[]], [], "none", None, {}, {"counts": [1], "size": "a"}, [1, 2, 3, 4, 5, 6]]
)
def test_no_segmentation_costs_an_object(write, segmentation):
    records = load_coco(*write(_set("annotations", 1, "segmentation", segmentation)))
    assert [item["id"] for item in records[0]["annotations"]] == [1, 7, 8]
    assert all("segmentation" not in item for item in records[0]["annotations"])


def test_the_built_in_sets_are_read_by_the_same_reader(write, monkeypatch):
    path, images = write(_set("annotations", 1, "segmentation", [[1, 2]]))
    metadata = MetadataCatalog.get("coco_2017_val_100")
    names = {"thing_classes": ["dog", "owl", "cat"], "thing_dataset_id_to_contiguous_id": {3: 0, 17: 1, 90: 2}}
    for key, value in {"json_file": str(path), "image_root": str(images), **names}.items():
        monkeypatch.setitem(vars(metadata), key, value)
    assert [item["id"] for item in DatasetCatalog.get("coco_2017_val_100")[0]["annotations"]] == [1, 7, 8]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get("coco_2017_val_100")


def test_a_set_cannot_change_its_classes(write):
    load_coco(*write(), "changing")
    with pytest.raises(DataError, match=r"classes dog, owl, wolf .*changing is known with dog, owl, cat.*own name"):
        load_coco(*write(_set("categories", 0, "name", "wolf")), "changing")


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
