"""Ground truth as rows of numbers, one an object: what the label encoder of LGD (2109.11496) reads.

Letters: B images, N rows an image (padded to the largest), K classes, D numbers a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor, nn

from ....detr.preprocess import labels_of
from ....errors import ConfigError
from ...students.base import StudentStep

MASK_SIZE = 7  # an object's mask inside its box, in cells a side [C]


@dataclass
class Labels:
    """The objects of a batch, and in each image's last row the image itself where a context row is wanted.

    Attributes:
        rows: (B, N, D) float in [-1, 1]. valid: (B, N) bool, False on padding.
        boxes: (B, N, 4) corners in pixels of the padded batch, zero on padding.
        is_context: (B, N) bool, the row of the whole image.
        masks: (B, N, height, width) bool of the padded batch, or None.
    """

    rows: Tensor
    valid: Tensor
    boxes: Tensor
    is_context: Tensor
    masks: Tensor | None = None


class LabelDescriptor(nn.Module):
    """Corners over the padded batch's size and a class, mapped to [-1, 1] [C].

    A class is one-hot; with many classes a learned vector, since the encoder's first transform has D^2 outputs [R]. The
    context row is the whole image without a class [C]. With masks a row ends with the object's mask in its box [C].

    Args:
        num_classes: K. context: append the row of the whole image. class_embedding: width of the learned vector, 0 for
            one-hot. use_masks: read ``gt_masks``.

    Attributes:
        width: D.
    """

    def __init__(self, num_classes: int, context: bool, class_embedding: int, use_masks: bool):
        super().__init__()
        self.num_classes, self.context, self.use_masks = num_classes, context, use_masks
        # The last row is the context's.
        self.class_embedding = nn.Embedding(num_classes + 1, class_embedding) if class_embedding else None
        self.width = 4 + (class_embedding or num_classes) + MASK_SIZE**2 * use_masks

    def forward(self, step: StudentStep, device: torch.device) -> Labels:
        """The labels of a training step.

        Raises:
            ConfigError: masks are wanted and an image has none.
        """
        height, width = step.image_size
        instances = labels_of(step.batched_inputs)
        boxes, valid = pad_boxes(instances, device, (width, height) if self.context else None)
        classes = pad_classes(instances, boxes.shape[1], self.num_classes, device)
        # Behind an image's objects: the last row that is no padding.
        is_context = valid & ~F.pad(valid[:, 1:], (0, 1)) if self.context else torch.zeros_like(valid)
        x, y = boxes.unflatten(-1, (2, 2)).unbind(-1)
        corners = torch.stack([x / width, y / height], dim=-1).flatten(-2)
        parts = [2 * corners.clamp(0, 1) - 1, self._classes(classes)]
        masks = None
        if self.use_masks:
            masks = _pad_masks(instances, boxes.shape[1], step.image_size, self.context, device)
            parts.append(2 * _crop_masks(instances, boxes.shape[1], self.context, device) - 1)
        return Labels(torch.cat(parts, dim=-1), valid, boxes, is_context, masks)

    def _classes(self, classes: Tensor) -> Tensor:
        if self.class_embedding is not None:
            return self.class_embedding(classes).tanh()
        one_hot = classes.unsqueeze(-1) == torch.arange(self.num_classes, device=classes.device)
        return 2.0 * one_hot - 1.0


def pad_boxes(
    instances: list[Instances], device: torch.device, context: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes of a batch, padded to the largest image, at least one row.

    Args:
        context: (width, height) of a box that stands behind each image's own.

    Returns:
        (B, N, 4) corners in pixels, zero on padding; (B, N) bool, False on padding.
    """
    counts = [len(entry) + (context is not None) for entry in instances]
    boxes = torch.zeros(len(instances), max(1, *counts), 4)
    for image, entry in enumerate(instances):
        boxes[image, : len(entry)] = entry.gt_boxes.tensor
        if context is not None:
            boxes[image, len(entry), 2:] = torch.tensor(context)
    valid = torch.arange(boxes.shape[1]) < torch.tensor(counts)[:, None]
    return boxes.to(device, non_blocking=True), valid.to(device, non_blocking=True)


def pad_classes(instances: list[Instances], rows: int, filler: int, device: torch.device) -> Tensor:
    """(B, N) classes of a batch, ``filler`` where an image has no object."""
    classes = torch.full((len(instances), rows), filler)
    for image, entry in enumerate(instances):
        classes[image, : len(entry)] = entry.gt_classes
    return classes.to(device, non_blocking=True)


def _masks_of(entry: Instances) -> BitMasks | PolygonMasks:
    if not entry.has("gt_masks"):
        raise ConfigError(
            "MODEL.DISTILL.LABEL_ENCODER.USE_MASKS is True, but an image has no gt_masks. Set MODEL.MASK_ON True "
            "with a data set that has segmentations, or USE_MASKS False."
        )
    return entry.gt_masks


def _crop_masks(instances: list[Instances], rows: int, context: bool, device: torch.device) -> Tensor:
    """(B, N, 49): each object's mask in its box; all ones for the context."""
    crops = torch.zeros(len(instances), rows, MASK_SIZE**2)
    for image, entry in enumerate(instances):
        if len(entry):
            crops[image, : len(entry)] = _masks_of(entry).crop_and_resize(entry.gt_boxes.tensor, MASK_SIZE).flatten(1)
        if context:
            crops[image, len(entry)] = 1.0
    return crops.to(device, non_blocking=True)


def _pad_masks(
    instances: list[Instances], rows: int, size: tuple[int, int], context: bool, device: torch.device
) -> Tensor:
    """(B, N, height, width) bool over the padded batch."""
    padded = torch.zeros(len(instances), rows, *size, dtype=torch.bool)
    for image, entry in enumerate(instances):
        if len(entry):
            masks = _masks_of(entry)
            if isinstance(masks, PolygonMasks):
                masks = BitMasks.from_polygon_masks(masks, *entry.image_size)
            height, width = masks.tensor.shape[-2:]
            padded[image, : len(entry), :height, :width] = masks.tensor
        if context:
            padded[image, len(entry)] = True
    return padded.to(device, non_blocking=True)
