"""Loads the dataset dicts that a configuration names; whatever is wrong with them becomes a ``DataError``."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts

from ..errors import DataError
from .bad_boxes import check_boxes
from .class_lists import compare_class_lists
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
    check_registered(names, key)
    filter_empty = test_name is None and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    with _reading(names, key):
        # detectron2 would compare the spelling of several class lists character by character.
        records = get_detection_dataset_dicts(names, filter_empty=filter_empty, check_consistency=len(names) == 1)
    compare_class_lists((key, name) for name in names)
    if test_name is None and not all(checks_its_boxes(name) for name in names):
        check_boxes(records, cfg.DATASETS.BAD_BOXES, f"{key} {', '.join(names)}")
    return records if cfg.MODEL.MASK_ON else [_without_masks(record) for record in records]


def load_set(cfg: CfgNode, name: str, key: str) -> list[dict]:
    """All dataset dicts of one registered set, the boxes of a training set checked; see :func:`load_records`.

    Args:
        cfg: its ``DATASETS.REGISTER`` has been registered. name: of the set. key: that names it.

    Raises:
        DataError: the set lacks files, has no image, or has bad boxes.
    """
    with _reading((name,), key):
        records = DatasetCatalog.get(name)
    if not records:
        raise DataError(f"{key}: dataset {name} has no image. Take it out, or name a set that has some.")
    if key == "DATASETS.TRAIN" and not checks_its_boxes(name):
        check_boxes(records, cfg.DATASETS.BAD_BOXES, f"{key} {name}")
    return records


@contextlib.contextmanager
def _reading(names: Sequence[str], key: str) -> Iterator[None]:
    """Within, what detectron2 finds wrong with sets is a DataError.

    Python's collector rests: it would look for cycles among a million dictionaries that have none, half of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{key}: dataset {', '.join(names)} cannot be loaded: {error}. Put its files there, or point the "
            "environment variable DETECTRON2_DATASETS at the folder that holds them."
        ) from error
    except (AssertionError, ValueError) as error:  # such as one without images
        raise DataError(f"{key}: datasets {', '.join(names)} cannot be used: {error}") from error
    finally:
        if collects:
            gc.enable()


def _without_masks(record: dict) -> dict:
    """A copy without segmentations, which are most of COCO's annotations and would be read again for every image."""
    if "annotations" not in record:
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
                f"{key} has {name!r}, which is not registered. Add it to DATASETS.REGISTER. Known: {known}."
            )
