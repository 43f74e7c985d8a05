"""Loads the dataset dicts that a configuration names; whatever is wrong with them becomes a ``DataError``."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import check_metadata_consistency, print_instances_class_histogram

from ..errors import DataError
from .annotation_text import collector_off
from .bad_boxes import check_boxes
from .masks import check_masks
from .registration import checks_its_boxes, register_datasets


def load_records(cfg: CfgNode, test_name: str | None = None) -> list[dict]:
    """Dataset dicts of ``DATASETS.TRAIN``, or of one dataset to evaluate.

    Args:
        cfg: its ``DATASETS.REGISTER`` is registered first.
        test_name: the dataset to evaluate; its images without objects and its boxes stay as they are.

    Returns:
        Dicts in detectron2's dataset format.

    Raises:
        DataError: a dataset is not registered, lacks files, has bad boxes, lacks masks that are to be trained, or
            contradicts another.
    """
    register_datasets(cfg.DATASETS.REGISTER, cfg.DATASETS.BAD_BOXES)
    key = "DATASETS.TRAIN" if test_name is None else "DATASETS.TEST"
    names = tuple(cfg.DATASETS.TRAIN) if test_name is None else (test_name,)
    _check_registered(names, key)
    filter_empty = test_name is None and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    try:
        with collector_off():
            records = get_detection_dataset_dicts(names, filter_empty=filter_empty, check_consistency=False)
            _check_same_classes(names, records)
    except OSError as error:
        raise DataError(
            f"{key}: dataset {', '.join(names)} cannot be loaded: {error}. Put its files there, or point the "
            "environment variable DETECTRON2_DATASETS at the folder that holds them."
        ) from error
    except (AssertionError, ValueError) as error:  # empty, or class names that differ between datasets
        raise DataError(f"{key}: datasets {', '.join(names)} cannot be used: {error}") from error
    if test_name is None:
        _check_training(cfg, names, records)
    return records if cfg.MODEL.MASK_ON else [_without_masks(record) for record in records]


def _check_training(cfg: CfgNode, names: Sequence[str], records: list[dict]) -> None:
    """Whether records can be learned from: they have objects, with boxes and masks that are ones."""
    source = f"DATASETS.TRAIN {', '.join(names)}"
    bare = [record["file_name"] for record in records if "annotations" not in record]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {len(records)} images have no 'annotations' in their file, such as {bare[0]}. "
            "Train on a set with objects; one without is for DATASETS.TEST."
        )
    if not all(checks_its_boxes(name) for name in names):
        check_boxes(records, cfg.DATASETS.BAD_BOXES, source)
    if cfg.MODEL.MASK_ON:
        check_masks(records, cfg.INPUT.MASK_FORMAT, source)


def _check_same_classes(names: Sequence[str], records: list[dict]) -> None:
    """As detectron2 does it, with its table of the classes; raises ``AssertionError`` where class names differ."""
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if classes is None or "annotations" not in records[0]:
        return
    try:
        check_metadata_consistency("thing_classes", names)
    except AttributeError:  # the class names of one set are not known
        return
    objects = [item for record in records for item in record.get("annotations", ())]
    print_instances_class_histogram([{"annotations": objects}], classes)  # it takes its time with each record


def _without_masks(record: dict) -> dict:
    """A copy without segmentations, which are most of COCO's annotations and would be read again for every image."""
    if not any("segmentation" in item for item in record.get("annotations", ())):
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
                f"{key} has {name!r}, which is not registered. Add it to DATASETS.REGISTER. Known: {known}."
            )
