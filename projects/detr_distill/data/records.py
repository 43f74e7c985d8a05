"""Loads the dataset dicts that a configuration names; whatever is wrong with them becomes a ``DataError``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import print_instances_class_histogram

from ..config.spelling import suggest
from ..errors import DataError
from .annotations.masks import check_masks
from .annotations.text import collector_off
from .bad_boxes import check_boxes
from .class_lists import compare_class_lists
from .registration import checks_its_boxes, register_configured, unlabelled_records

logger = logging.getLogger(__name__)


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
    register_configured(cfg)
    key = "DATASETS.TRAIN" if test_name is None else "DATASETS.TEST"
    names = tuple(cfg.DATASETS.TRAIN) if test_name is None else (test_name,)
    check_registered(names, key)
    filter_empty = test_name is None and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    with _reading(names, key), collector_off():
        # detectron2 would compare the spelling of several class lists character by character.
        records = get_detection_dataset_dicts(names, filter_empty=filter_empty, check_consistency=False)
    compare_class_lists((key, name) for name in names)
    _print_classes(names[0], records)
    if test_name is None:
        _check_training(cfg, names, records)
    return records if cfg.MODEL.MASK_ON else [_without_masks(record) for record in records]


def load_set(cfg: CfgNode, name: str, key: str) -> list[dict]:
    """All dataset dicts of one registered set, the boxes of a training set checked; see :func:`load_records`.

    Args:
        cfg: its ``DATASETS.REGISTER`` has been registered. name: of the set. key: that names it.

    Raises:
        DataError: the set lacks files, has no image, or has bad boxes.
    """
    with _reading((name,), key), collector_off():
        records = DatasetCatalog.get(name)
    if not records:
        raise DataError(f"{key}: dataset {name} has no image. Take it out, or name a set that has some.")
    if key == "DATASETS.TRAIN":
        _check_training(cfg, (name,), records)
    return records


def load_images(name: str, key: str) -> list[dict]:
    """Dataset dicts of a registered set whose labels are not looked at; see :func:`load_set`."""
    with _reading((name,), key), collector_off():
        records = unlabelled_records(name)
    if not records:
        raise DataError(f"{key}: dataset {name} has no image. Take it out, or name a set that has some.")
    annotated = sum(bool(record.get("annotations")) for record in records)
    if annotated:
        logger.info("%s: the labels of %d images of %s are not looked at.", key, annotated, name)
    return [{field: value for field, value in record.items() if field != "annotations"} for record in records]


@contextlib.contextmanager
def _reading(names: Sequence[str], key: str) -> Iterator[None]:
    """Within, what detectron2 finds wrong with sets is a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{key}: dataset {', '.join(names)} cannot be loaded: {error}. Put its files there, or point the "
            "environment variable DETECTRON2_DATASETS at the folder that holds them."
        ) from error
    except (AssertionError, ValueError) as error:  # such as one without images
        remedy = ""
        if "No valid data" in str(error):
            remedy = (
                " DATALOADER.FILTER_EMPTY_ANNOTATIONS True leaves out images without objects, and no image is left: "
                "set it to False, or look at the annotation file."
            )
        raise DataError(f"{key}: datasets {', '.join(names)} cannot be used: {error}{remedy}") from error


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


def _print_classes(name: str, records: list[dict]) -> None:
    """detectron2's table of the objects of each class."""
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None or "annotations" not in records[0]:
        return
    objects = [item for record in records for item in record.get("annotations", ())]
    print_instances_class_histogram([{"annotations": objects}], classes)  # it takes its time with each record


def _without_masks(record: dict) -> dict:
    """A copy without segmentations, which are most of COCO's annotations and would be read again for every image."""
    if not any("segmentation" in item for item in record.get("annotations", ())):
        return record
    slim = [{key: value for key, value in item.items() if key != "segmentation"} for item in record["annotations"]]
    return {**record, "annotations": slim}


def check_registered(names: Sequence[str], key: str) -> None:
    """Raises DataError where a key names no set, or one that is not registered."""
    if not names:
        raise DataError(f"{key} is empty. Name a dataset, such as digits_train or coco_2017_train.")
    for name in names:
        if name not in DatasetCatalog:
            known = ", ".join(sorted(DatasetCatalog))
            raise DataError(
                f"{key} has {name!r}, which is not registered; it is {tuple(names)!r}."
                f"{suggest(str(name), DatasetCatalog)} Add it to DATASETS.REGISTER. Known: {known}."
            )
