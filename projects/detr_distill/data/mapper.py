"""Turns a dataset's record of one image into the model's input."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from ..errors import DataError
from .augmentation import ResizeShortSide, detr_augmentation
from .image import FORMATS, check_eight_bits, read_image
from .strong import StrongAugmentation

_CROP_TYPES = ("absolute_range", "absolute", "relative_range", "relative")  # DETR's is the first


class DetrDatasetMapper:
    """Reads an image, augments it as DETR does, and makes the dict that detectron2's models take.

    Args:
        is_train: False drops the annotations.
        augmentations: what is done to the image, in order.
        image_format: "BGR" or "RGB".
        use_masks: keep segmentations as ``gt_masks``.
        mask_format: "polygon" or "bitmask".
        strong: done to what the student sees of images without labels and, ``strong_with_labels``, of all; its teacher
            sees ``teacher_image``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        strong: StrongAugmentation | None = None,
        strong_with_labels: bool = False,
        image_format: str = "BGR",
        use_masks: bool = False,
        mask_format: str = "polygon",
    ) -> None:
        if image_format not in FORMATS:
            raise DataError(f"INPUT.FORMAT is {image_format!r}; choose one of: {', '.join(FORMATS)}.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_masks = use_masks
        self.mask_format = mask_format
        self.strong, self.strong_with_labels = strong, strong_with_labels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": _train_augmentation(cfg) if is_train else [test_resize(cfg)],
            "image_format": cfg.INPUT.FORMAT,
            "use_masks": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "strong": StrongAugmentation.from_config(cfg) if is_train and cfg.INPUT.STRONG.IMAGES != "none" else None,
            "strong_with_labels": cfg.INPUT.STRONG.IMAGES == "all",
        }

    def __call__(self, record: dict) -> dict:
        """Maps one record, which stays as it is.

        Args:
            record: a dict in detectron2's standard dataset format.

        Returns:
            The record without ``annotations``, with ``image`` (3, height, width) uint8 and, in training, ``placement``
            (x and y of the image file's first and opposite corner in ``image``, pixels) and ``instances`` whose boxes
            are cut to the image; objects that were cut away and crowds are left out.

        Raises:
            DataError: the image cannot be read, or its size is not what the record says.
        """
        image = read_image(record["file_name"], self.image_format)
        result = {key: value for key, value in record.items() if key != "annotations"}
        _check_size(result, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        if self.is_train:
            height, width = image.shape[:2]
            corners = transforms.apply_coords(np.array([[0.0, 0.0], [width, height]]))
            result["placement"] = tuple(corners.ravel().tolist())
        image = augmented.image
        result["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.strong is not None and (self.strong_with_labels or "annotations" not in record):
            result["teacher_image"] = result["image"]
            result["image"] = self.strong(result["image"])
        if self.is_train and "annotations" in record:
            objects = [item for item in record["annotations"] if not item.get("iscrowd", 0)]
            make = self._instances_with_masks if self.use_masks else _instances
            result["instances"] = make(objects, transforms, image.shape[:2])
        return result

    def _instances_with_masks(self, objects: list[dict], transforms: T.Transform, size: tuple[int, int]) -> Instances:
        moved = [detection_utils.transform_instance_annotations(copy.deepcopy(o), transforms, size) for o in objects]
        instances = detection_utils.annotations_to_instances(moved, size, mask_format=self.mask_format)
        return detection_utils.filter_empty_instances(instances)


class PillowDatasetMapper(DatasetMapper):
    """detectron2's own mapper. Its reader would cut off what exceeds 8 bits, so deeper images are refused."""

    def __call__(self, dataset_dict: dict) -> dict:
        check_eight_bits(dataset_dict["file_name"])
        return super().__call__(dataset_dict)


def _instances(objects: list[dict], transforms: T.Transform, size: tuple[int, int]) -> Instances:
    """What detectron2's functions make of boxes and classes, for all objects at once: several times faster."""
    boxes = _corners(objects)
    if len(boxes):
        boxes = transforms.apply_box(boxes)
    height, width = size
    boxes = boxes.clip(0, (width, height, width, height))
    classes = np.array([o["category_id"] for o in objects], dtype=np.int64)
    keep = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(axis=1)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes[keep].astype(np.float32)))
    instances.gt_classes = torch.from_numpy(classes[keep])
    return instances


def _corners(objects: list[dict]) -> np.ndarray:
    """(N, 4) float64 x1, y1, x2, y2."""
    modes = {o["bbox_mode"] for o in objects}
    if len(modes) > 1:
        return np.concatenate([_corners([o]) for o in objects])
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
    return BoxMode.convert(boxes, modes.pop(), BoxMode.XYXY_ABS) if modes else boxes


def _check_size(record: dict, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    expected = (record.setdefault("width", width), record.setdefault("height", height))
    if expected != (width, height):
        raise DataError(
            f"Image file {record['file_name']} is {width} x {height} pixels, but its annotation file says "
            f"{expected[0]} x {expected[1]}. Correct the annotation file, or restore the image."
        )


def _sizes(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else tuple(value)


def test_resize(cfg: CfgNode) -> T.Augmentation:
    """What brings an image to the size at which the detector is evaluated."""
    return ResizeShortSide(_sizes(cfg.INPUT.MIN_SIZE_TEST), cfg.INPUT.MAX_SIZE_TEST)


def _train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "none"):
        raise DataError(f"INPUT.RANDOM_FLIP is {flip!r}; with INPUT.MAPPER detr choose one of: horizontal, none.")
    sizes = _sizes(cfg.INPUT.MIN_SIZE_TRAIN)
    is_range = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    if is_range and len(sizes) != 2:
        raise DataError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; with MIN_SIZE_TRAIN_SAMPLING range it needs two sizes.")
    resize = ResizeShortSide(sizes, cfg.INPUT.MAX_SIZE_TRAIN, is_range)
    return detr_augmentation(resize, flip == "horizontal", _crop(cfg), _sizes(cfg.INPUT.CROP.RESIZE))


def _crop(cfg: CfgNode) -> T.Augmentation | None:
    node = cfg.INPUT.CROP
    if not node.ENABLED:
        return None
    if node.TYPE not in _CROP_TYPES:
        raise DataError(f"INPUT.CROP.TYPE is {node.TYPE!r}; choose one of: {', '.join(_CROP_TYPES)}.")
    if cfg.MODEL.MASK_ON and importlib.util.find_spec("shapely") is None:
        raise DataError(
            "INPUT.CROP.ENABLED with MODEL.MASK_ON cuts polygons, which needs shapely. "
            "Run: pip install shapely; or set one of the two to False."
        )
    return T.RandomCrop(node.TYPE, node.SIZE)
