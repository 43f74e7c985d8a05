"""Loads the dataset dicts that a configuration names; whatever is wrong with them becomes a ``DataError``."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts

from ..config.spelling import suggest
from ..errors import DataError
from .bad_boxes import check_boxes
from .registration import checks_its_boxes, register_datasets


def load_records(cfg: CfgNode, test_name: str | None = None) -> list[dict]:
    """Dataset dicts of ``DATASETS.TRAIN``, or of one dataset to evaluate.

    Args:
        cfg: its ``DATASETS.REGISTER`` is registered first.
        test_name: the dataset to evaluate; its images without objects and its boxes stay as they are.

    Returns:
        Dicts in detectron2's dataset format.

    Raises:
        DataError: a dataset is not registered, lacks files, has bad boxes or contradicts another.
    """
    register_datasets(cfg.DATASETS.REGISTER, cfg.DATASETS.BAD_BOXES)
    key = "DATASETS.TRAIN" if test_name is None else "DATASETS.TEST"
    names = tuple(cfg.DATASETS.TRAIN) if test_name is None else (test_name,)
    _check_registered(names, key)
    filter_empty = test_name is None and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    try:
        records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except OSError as error:
        raise DataError(
            f"{key}: dataset {', '.join(names)} cannot be loaded: {error}. Put its files there, or point the "
            "environment variable DETECTRON2_DATASETS at the folder that holds them."
        ) from error
    except (AssertionError, ValueError) as error:  # empty, or class names that differ between datasets
        remedy = ""
        if filter_empty and "No valid data" in str(error):
            remedy = (
                " DATALOADER.FILTER_EMPTY_ANNOTATIONS True leaves out images without objects, and no image is left: "
                "set it to False, or look at the annotation file."
            )
        raise DataError(f"{key}: datasets {', '.join(names)} cannot be used: {error}{remedy}") from error
    if test_name is None and not all(checks_its_boxes(name) for name in names):
        check_boxes(records, cfg.DATASETS.BAD_BOXES, f"{key} {', '.join(names)}")
    return records if cfg.MODEL.MASK_ON else [_without_masks(record) for record in records]


def _without_masks(record: dict) -> dict:
    """A copy without segmentations, which are most of COCO's annotations and would be read again for every image."""
    if "annotations" not in record:
        return record
    slim = [{key: value for key, value in item.items() if key != "segmentation"} for item in record["annotations"]]
    return {**record, "annotations": slim}


def _check_registered(names: Sequence[str], key: str) -> None:
    if not names:
        raise DataError(f"{key} is empty. Name a dataset, such as digits_train or coco_2017_train.")
    for name in names:
        if name not in DatasetCatalog:
            known = ", ".join(sorted(DatasetCatalog))
            raise DataError(
                f"{key} has {name!r}, which is not registered; it is {tuple(names)!r}."
                f"{suggest(str(name), DatasetCatalog)} Add it to DATASETS.REGISTER. Known: {known}."
            )
