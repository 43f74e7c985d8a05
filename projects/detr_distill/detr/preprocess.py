"""Images and ground truth from detectron2's format to padded tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import DataError
from ..moved import renamed
from ..structures import GroundTruth, ImageBatch
from ..structures.fixed_batch import FixedBatch
from ..structures.transfer import copy_to
from .boxes import to_centres

__getattr__ = renamed(__name__, {})


def pad_images(
    images: list[Tensor], mean: Tensor, std: Tensor, divisibility: int, extents: Tensor | None = None
) -> ImageBatch:
    """Normalises images and pads them on the right and below.

    Args:
        images: (3, height, width) each, in the range and channel order of ``mean`` and ``std`` (3, 1, 1).
        divisibility: the padded height and width are multiples of it.
        extents: (B, 2) long, height and width of each image that are no padding already; None: all.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // divisibility) * divisibility for side in zip(*sizes, strict=True))
    mask = None
    is_padded = any(size != (height, width) for size in sizes)
    if is_padded:
        images = [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    batch = (torch.stack(images) - mean) / std
    if is_padded or extents is not None:
        mask = padding_of(height, width, copy_to(torch.tensor(sizes), mean.device) if extents is None else extents)
        batch = batch.masked_fill(mask.unsqueeze(1), 0.0)
    if batch.device.type == "cpu":
        # The layout passes on from convolution to convolution; a ResNet's are faster in it (docs/benchmarks.md).
        batch = batch.contiguous(memory_format=torch.channels_last)
    return ImageBatch(batch, mask, sizes)


def padding_of(height: int, width: int, extents: Tensor) -> Tensor:
    """(B, height, width) bool, True where a pixel lies outside of an image's ``extents`` (B, 2), height and width."""
    rows, columns = (torch.arange(side, device=extents.device) for side in (height, width))
    return (rows[None, :, None] >= extents[:, 0, None, None]) | (columns[None, None, :] >= extents[:, 1, None, None])


def pad_to_multiple(values: Tensor, divisibility: int, value: float = 0) -> Tensor:
    """Tensors (..., height, width) with more on the right and below, up to multiples of ``divisibility`` pixels."""
    if divisibility <= 1:
        return values
    below, right = (-side % divisibility for side in values.shape[-2:])
    return F.pad(values, (0, right, 0, below), value=value)


def read_ground_truth(
    batched_inputs: list[dict], device: torch.device | str, *, needs_labels: bool = True
) -> GroundTruth:
    """The objects of a batch, padded on the host and copied at once.

    Args:
        batched_inputs: detectron2 dicts with ``image`` (3, height, width) and ``instances``, of which ``gt_classes``
            and ``gt_boxes``, in pixels, are read; or a ``FixedBatch``, which has them. device: of the result.
        needs_labels: False takes images without labels too, which then have no objects.

    Raises:
        DataError: an image has no labels.
    """
    if isinstance(batched_inputs, FixedBatch):
        return batched_inputs.truth
    instances = [entry.get("instances") for entry in batched_inputs]
    for entry, found in zip(batched_inputs, instances, strict=True):
        if found is None and needs_labels:
            raise DataError(
                f"A training image ({entry.get('file_name', 'without a file name')}) has no 'instances'. Train on a "
                "data set with annotations (DATASETS.TRAIN)."
            )
    empty = Instances((0, 0), gt_classes=torch.zeros(0, dtype=torch.long), gt_boxes=Boxes(torch.zeros(0, 4)))
    objects = [empty if found is None else found for found in instances]
    counts = [len(found) for found in objects]
    labels = pad_sequence([found.gt_classes.long() for found in objects], batch_first=True)
    corners = pad_sequence([found.gt_boxes.tensor.float() for found in objects], batch_first=True)
    sizes = [(entry["image"].shape[-2], entry["image"].shape[-1]) for entry in batched_inputs]
    scale = corners.new_tensor([(width, height, width, height) for height, width in sizes])
    boxes = to_centres(corners) / scale[:, None, :]
    valid = GroundTruth.count_valid(counts, labels.shape[1])
    labels, boxes, valid = (copy_to(values, device) for values in (labels, boxes, valid))
    masks = tuple(found.gt_masks if found.has("gt_masks") else None for found in objects)
    labelled = tuple(found is not None for found in instances)
    return GroundTruth(labels, boxes, valid, counts, corners, masks, labelled, tuple(sizes))
