"""Datasets, augmentation and loading. Importing this registers ``digits_train``, ``digits_val``, ``digits_test``."""

from ..errors import DataError
from .bad_boxes import check_boxes
from .builtin_coco import register_builtin_coco
from .class_count import read_configuration
from .coco import load_coco
from .digit_pictures import CANVAS, draw_picture
from .digits import build_digits, prepare, register_digits, split_samples
from .image import read_image
from .loader import TestLoader, TrainLoader, build_test_loader, build_train_loader
from .mapper import DetrDatasetMapper
from .registration import (
    check_num_classes,
    class_names,
    dataset_files,
    register_configured,
    register_datasets,
    tested_class_names,
    training_class_names,
)

__all__ = [
    "CANVAS",
    "DataError",
    "DetrDatasetMapper",
    "TestLoader",
    "TrainLoader",
    "build_digits",
    "build_test_loader",
    "build_train_loader",
    "check_boxes",
    "check_num_classes",
    "class_names",
    "dataset_files",
    "draw_picture",
    "load_coco",
    "prepare",
    "read_configuration",
    "read_image",
    "register_configured",
    "register_datasets",
    "register_digits",
    "split_samples",
    "tested_class_names",
    "training_class_names",
]

register_digits()
register_builtin_coco()
