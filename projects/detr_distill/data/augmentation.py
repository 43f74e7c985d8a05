"""DETR's training augmentation as detectron2 augmentations that work on OpenCV instead of Pillow.

Random numbers come from ``numpy.random``, as in all of detectron2's augmentations; the loader seeds it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform

CROP_PROBABILITY = 0.5


class Flip(HFlipTransform):
    """Mirror image; a contiguous one, unlike that of the base class."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.flip(_without_bool(img), 1)


class Resize(Transform):
    """Brings an image of (h, w) pixels to (new_h, new_w)."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        # Averaging when shrinking keeps thin things that sampling would drop.
        shrinks = self.new_h * self.new_w < self.h * self.w
        return self._resize(img, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._resize(segmentation, cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * (self.new_w / self.w, self.new_h / self.h)

    def inverse(self) -> Transform:
        return Resize(self.new_h, self.new_w, self.h, self.w)

    def _resize(self, img: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(_without_bool(img), (self.new_w, self.new_h), interpolation=interpolation)


class RandomFlip(T.Augmentation):
    """Mirrors half of the images."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return Flip(image.shape[1]) if np.random.random() < 0.5 else NoOpTransform()


class ResizeShortSide(T.Augmentation):
    """Brings the short side to a random one of some sizes, keeping the aspect ratio.

    Args:
        sizes: short sides in pixels; none, or a 0 among them: no resizing.
        max_size: the long side gets no longer than this.
        is_range: ``sizes`` are the (smallest, largest) of a range instead of a list.
    """

    def __init__(self, sizes: Sequence[int], max_size: int = sys.maxsize, is_range: bool = False) -> None:
        super().__init__()
        if is_range:
            sizes = range(sizes[0], sizes[1] + 1)
        self.sizes = tuple(sizes)
        self.max_size = max_size

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        # Drawn even if there is no choice, so that one size more or less does not shift later random numbers.
        choice = int(np.random.random() * len(self.sizes))
        if not self.sizes or self.sizes[choice] == 0:
            return NoOpTransform()
        resized = T.ResizeShortestEdge.get_output_shape(height, width, self.sizes[choice], self.max_size)
        new = max(resized[0], 1), max(resized[1], 1)  # an extremely thin image would be rounded to nothing
        return NoOpTransform() if new == (height, width) else Resize(height, width, *new)


def detr_augmentation(
    sizes: ResizeShortSide,
    flip: bool = True,
    crop: T.Augmentation | None = None,
    sizes_before_crop: Sequence[int] = (),
) -> list[T.Augmentation]:
    """DETR's training augmentation.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 4 and appendix A.4.

    Args:
        sizes: the multi-scale resize that ends it.
        flip: mirror half of the images.
        crop: applied to half of the images; None: never.
        sizes_before_crop: short sides, to one of which an image is brought before it is cropped.
    """
    steps: list[T.Augmentation] = [RandomFlip()] if flip else []
    if crop is not None:
        zoomed_crop = T.AugmentationList([ResizeShortSide(sizes_before_crop), crop])
        steps.append(T.RandomApply(zoomed_crop, CROP_PROBABILITY))
    return [*steps, sizes]


def _without_bool(img: np.ndarray) -> np.ndarray:
    """OpenCV knows no bool arrays."""
    return img.view(np.uint8) if img.dtype == bool else img
