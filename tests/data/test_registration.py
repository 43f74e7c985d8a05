import json

from detr_distill.config.build import build_config
from detr_distill.data import DataError, check_num_classes, class_names, register_datasets, training_class_names

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog


def test_class_names(digits_folders):
    path = digits_folders["val"] / "annotations" / "instances.json"
    register_datasets([["names_of_mine", str(path), str(path.parent)]])
    assert class_names("names_of_mine") == tuple("0123456789")
    assert class_names("digits_train") == tuple("0123456789")
    coco = class_names("coco_2017_train")
    assert coco is not None
    assert (len(coco), coco[0], coco[-1]) == (80, "person", "toothbrush")
    assert class_names("never_registered") is None


def test_class_names_are_unknown_without_files(tmp_path):
    register_datasets([["files_to_come", str(tmp_path / "a.json"), str(tmp_path)]])
    assert class_names("files_to_come") is None
    (tmp_path / "a.json").write_text(json.dumps({"categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}]}))
    assert class_names("files_to_come") == ("a", "b")


def test_the_names_of_a_training_set_are_those_of_its_first_known_dataset(tmp_path):
    register_datasets([["names_to_come", str(tmp_path / "a.json"), str(tmp_path)]])
    cfg = get_cfg()
    for datasets, names in (
        ((), None),
        (("names_to_come",), None),
        (("names_to_come", "digits_val", "coco_2017_train"), tuple("0123456789")),
    ):
        cfg.DATASETS.TRAIN = datasets
        assert training_class_names(cfg) == names


def test_a_configurations_own_sets_come_first(tmp_path):
    """Though they are not registered, and another set of the name is."""
    for file, names in (("a.json", "xy"), ("b.json", "yx")):
        entries = [{"id": index, "name": name} for index, name in enumerate(names)]
        (tmp_path / file).write_text(json.dumps({"categories": entries}))
    register_datasets([["names_of_two", str(tmp_path / "a.json"), str(tmp_path)]])
    cfg = build_config("", ["DATASETS.TRAIN", "('names_of_two',)"])
    assert training_class_names(cfg) == ("x", "y")
    cfg.DATASETS.REGISTER = [["names_of_two", str(tmp_path / "b.json"), str(tmp_path)]]
    assert training_class_names(cfg) == ("y", "x") and class_names("names_of_two") == ("x", "y")
    cfg.DATASETS.REGISTER = [["names_of_two", str(tmp_path / "gone.json"), str(tmp_path)]]
    assert training_class_names(cfg) is None
    cfg.DATASETS.REGISTER = [["names_of_two", 3]]
    with pytest.raises(DataError, match="has the entry"):
        training_class_names(cfg)


def test_a_name_stands_for_one_dataset():
    register_datasets([["one_name", "a.json", "images"]])
    register_datasets([("one_name", "a.json", "images")], "fix")
    with pytest.raises(DataError, match=r"DATASETS\.REGISTER: the name 'one_name' .*a\.json.*b\.json"):
        register_datasets([["one_name", "b.json", "images"]])
    with pytest.raises(DataError, match="'coco_2017_val' belongs to a built-in dataset"):
        register_datasets([["coco_2017_val", "b.json", "images"]])


def test_the_latest_policy_for_bad_boxes_counts(tmp_path):
    contents = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 0], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(contents))
    (tmp_path / "a.jpg").write_bytes(b"")
    entry = ["policy_changes", str(tmp_path / "a.json"), str(tmp_path)]
    register_datasets([entry])
    with pytest.raises(DataError, match="BAD_BOXES fix"):
        DatasetCatalog.get("policy_changes")
    register_datasets([entry], "fix")
    assert DatasetCatalog.get("policy_changes")[0]["annotations"] == []


@pytest.mark.parametrize("entry", ["name", ["a", "b"], ["a", "b", 3], ["a", "b", ""], ["", "b", "c"]])
def test_a_malformed_entry(entry):
    with pytest.raises(DataError, match=r"DATASETS\.REGISTER has the entry .*expected \[name, annotation file"):
        register_datasets([entry])


def test_unknown_policy():
    with pytest.raises(DataError, match=r"DATASETS\.BAD_BOXES is 'no'"):
        register_datasets([], "no")


def test_number_of_classes():
    check_num_classes(["digits_train", "digits_val", "never_registered"], 10, "MODEL.DETR.NUM_CLASSES")
    with pytest.raises(DataError, match=r"MODEL\.DETR\.NUM_CLASSES is 80, but dataset digits_val has 10 classes"):
        check_num_classes(["digits_val"], 80, "MODEL.DETR.NUM_CLASSES")
