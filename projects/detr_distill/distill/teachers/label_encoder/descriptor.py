"""Ground truth as rows of numbers, one an object: what the label encoder of LGD (2109.11496) reads.

Letters: B images, N rows an image (padded to the largest), K classes, D numbers a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor, nn

from ....errors import ConfigError
from ....structures import GroundTruth
from ....structures.transfer import copy_to

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
            one-hot. use_masks: read ``gt_masks``. clamp_corners: to the last pixel's index, (width - 1, height - 1),
            before they are divided by the size.

    Attributes:
        width: D.
    """

    def __init__(
        self, num_classes: int, context: bool, class_embedding: int, use_masks: bool, clamp_corners: bool = False
    ):
        super().__init__()
        self.num_classes, self.context, self.use_masks = num_classes, context, use_masks
        self.clamp_corners = clamp_corners
        # The last row is the context's.
        self.class_embedding = nn.Embedding(num_classes + 1, class_embedding) if class_embedding else None
        self.width = 4 + (class_embedding or num_classes) + MASK_SIZE**2 * use_masks

    def forward(self, ground_truth: GroundTruth, image_size: tuple[int, int]) -> Labels:
        """The labels of a training step.

        Args:
            image_size: (height, width) of the padded batch, in pixels.

        Raises:
            ConfigError: masks are wanted and an image has none.
        """
        height, width = image_size
        boxes, valid = label_rows(ground_truth, (width, height) if self.context else None)
        # Behind an image's objects: the last row that is no padding.
        is_context = valid & ~F.pad(valid[:, 1:], (0, 1)) if self.context else torch.zeros_like(valid)
        labels = F.pad(ground_truth.labels, (0, boxes.shape[1] - ground_truth.labels.shape[1]))
        classes = labels.masked_fill(~valid | is_context, self.num_classes)
        x, y = boxes.unflatten(-1, (2, 2)).unbind(-1)
        if self.clamp_corners:
            x, y = x.clamp(max=width - 1), y.clamp(max=height - 1)
        corners = torch.stack([x / width, y / height], dim=-1).flatten(-2)
        parts = [2 * corners.clamp(0, 1) - 1, self._classes(classes)]
        masks = None
        if self.use_masks:
            masks = _pad_masks(ground_truth, boxes.shape[1], image_size, self.context)
            parts.append(2 * _crop_masks(ground_truth, boxes.shape[1], self.context) - 1)
        return Labels(torch.cat(parts, dim=-1), valid, boxes, is_context, masks)

    def _classes(self, classes: Tensor) -> Tensor:
        if self.class_embedding is not None:
            return self.class_embedding(classes).tanh()
        one_hot = classes.unsqueeze(-1) == torch.arange(self.num_classes, device=classes.device)
        return 2.0 * one_hot - 1.0


def label_rows(ground_truth: GroundTruth, context: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """The corners of a batch's objects, at least one row an image.

    Args:
        context: (width, height) of a box that stands behind each image's own.

    Returns:
        (B, N, 4) corners in pixels, zero on padding; (B, N) bool, False on padding.
    """
    if context is None:
        truth = ground_truth.at_least_one()
        return truth.corners_on_device, truth.valid
    assert ground_truth.corners is not None
    boxes = F.pad(ground_truth.corners, (0, 0, 0, 1))
    boxes[range(len(boxes)), ground_truth.counts, 2:] = torch.tensor(context).to(boxes.dtype)
    valid = GroundTruth.count_valid([count + 1 for count in ground_truth.counts], boxes.shape[1])
    device = ground_truth.boxes.device
    return copy_to(boxes, device), copy_to(valid, device)


def _masks_of(ground_truth: GroundTruth, image: int) -> BitMasks | PolygonMasks:
    masks = ground_truth.masks[image]
    if masks is None:
        raise ConfigError(
            "MODEL.DISTILL.LABEL_ENCODER.USE_MASKS is True, but an image has no gt_masks. Set MODEL.MASK_ON True "
            "with a data set that has segmentations, or USE_MASKS False."
        )
    return masks


def _crop_masks(ground_truth: GroundTruth, rows: int, context: bool) -> Tensor:
    """(B, N, 49): each object's mask in its box; all ones for the context."""
    assert ground_truth.corners is not None
    crops = torch.zeros(len(ground_truth.counts), rows, MASK_SIZE**2)
    for image, count in enumerate(ground_truth.counts):
        if count:
            boxes = ground_truth.corners[image, :count]
            crops[image, :count] = _masks_of(ground_truth, image).crop_and_resize(boxes, MASK_SIZE).flatten(1)
        if context:
            crops[image, count] = 1.0
    return copy_to(crops, ground_truth.boxes.device)


def _pad_masks(ground_truth: GroundTruth, rows: int, size: tuple[int, int], context: bool) -> Tensor:
    """(B, N, height, width) bool over the padded batch."""
    padded = torch.zeros(len(ground_truth.counts), rows, *size, dtype=torch.bool)
    for image, count in enumerate(ground_truth.counts):
        if count:
            masks = _masks_of(ground_truth, image)
            if isinstance(masks, PolygonMasks):
                masks = BitMasks.from_polygon_masks(masks, *ground_truth.sizes[image])
            height, width = masks.tensor.shape[-2:]
            padded[image, :count, :height, :width] = masks.tensor
        if context:
            padded[image, count] = True
    return copy_to(padded, ground_truth.boxes.device)
