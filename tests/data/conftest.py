"""A small digits dataset, built once, and configurations that train on it."""

import json

from detr_distill import add_detr_distill_config
from detr_distill.data import build_digits, register_datasets

import pytest
from detectron2.config import get_cfg

TRAIN_IMAGES = 60


@pytest.fixture(scope="session")
def digits_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    images = {"train": TRAIN_IMAGES, "val": 25, "test": 25}
    return {split: build_digits(root, split, number) for split, number in images.items()}


@pytest.fixture(scope="session")
def annotations(digits_folders):
    return {
        split: json.loads((folder / "annotations" / "instances.json").read_text())
        for split, folder in digits_folders.items()
    }


@pytest.fixture(scope="session")
def small_digits(digits_folders):
    folder = digits_folders["train"]
    register_datasets([("small_digits", str(folder / "annotations" / "instances.json"), str(folder / "images"))])
    return "small_digits"


@pytest.fixture
def cfg(small_digits):
    cfg = get_cfg()
    add_detr_distill_config(cfg)
    cfg.DATASETS.TRAIN = (small_digits,)
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    return cfg
