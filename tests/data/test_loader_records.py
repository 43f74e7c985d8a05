"""Which records of which data sets the train and test loaders give."""

from __future__ import annotations

import unicodedata

from detr_distill.data import DataError, build_test_loader, build_train_loader
from detr_distill.data.records import load_records

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from helpers.data.plain_sets import write_set
from helpers.data.streams import names, take


def test_images_without_objects_are_kept_unless_filtered(cfg, monkeypatch):
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    for record in records[:30]:
        record["annotations"] = []
    monkeypatch.setitem(DatasetCatalog.data, cfg.DATASETS.TRAIN[0], lambda: records)
    assert sum(len(element["instances"]) == 0 for batch in take(build_train_loader(cfg), 15) for element in batch) == 30
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(set(names(take(build_train_loader(cfg), 15)))) == 30


def test_bad_boxes_of_a_dataset_that_others_registered(cfg):
    item = {"bbox": [1, 1, 90, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    if "made_elsewhere" not in DatasetCatalog:
        DatasetCatalog.register(
            "made_elsewhere",
            lambda: [{"file_name": "a.jpg", "width": 50, "height": 50, "annotations": [{**item}]}],
        )
    cfg.DATASETS.TRAIN = ("made_elsewhere",)
    with pytest.raises(DataError, match=r"DATASETS\.TRAIN made_elsewhere: 1 of 1 boxes(.|\n)*a\.jpg"):
        build_train_loader(cfg)
    cfg.DATASETS.BAD_BOXES = "fix"
    build_train_loader(cfg)
    assert load_records(cfg)[0]["annotations"][0]["bbox"] == [1, 1, 49, 5]


def test_the_test_loader_gives_every_image_once_in_order(cfg, digits_folders):
    for workers, batch_size in ((0, 1), (2, 16)):
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_test_loader(cfg, cfg.DATASETS.TRAIN[0], batch_size)
        batches = list(loader)
        assert len(loader) == len(batches) == -(-60 // batch_size)
        assert [element["image_id"] for batch in batches for element in batch] == list(range(1, 61))
        assert batches[0][0]["image"].shape == (3, 96, 96)


def test_datasets_whose_names_are_written_differently_can_be_mixed(cfg, tmp_path):
    """A letter with an accent is one character, or two."""
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    cfg.DATASETS.REGISTER = [write_set(tmp_path, f"form_{n}", classes=(form, "tea")) for n, form in enumerate(forms)]
    cfg.DATASETS.TRAIN = ("form_0", "form_1")
    assert len(load_records(cfg)) == 8
    for name in cfg.DATASETS.TRAIN:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_datasets_with_other_classes_cannot_be_mixed(cfg):
    if "other_classes" not in DatasetCatalog:
        DatasetCatalog.register(
            "other_classes", lambda: [{"file_name": "a", "width": 9, "height": 9, "annotations": []}]
        )
        MetadataCatalog.get("other_classes").thing_classes = ["cat"]
    cfg.DATASETS.TRAIN += ("other_classes",)
    with pytest.raises(
        DataError, match=r"TRAIN small_digits and DATASETS\.TRAIN other_classes have different class lists"
    ):
        build_train_loader(cfg)
