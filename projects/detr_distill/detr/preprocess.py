"""Images and ground truth from detectron2's format to padded tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import DataError
from ..structures import ImageBatch, Targets
from .boxes import to_centres


def pad_images(images: list[Tensor], mean: Tensor, std: Tensor, divisibility: int) -> ImageBatch:
    """Normalises images and pads them on the right and below.

    Args:
        images: (3, height, width) each, in the range and channel order of ``mean`` and ``std`` (3, 1, 1).
        divisibility: the padded height and width are multiples of it.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // divisibility) * divisibility for side in zip(*sizes, strict=True))
    padded = [F.pad((x - mean) / std, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    mask = None
    if any(size != (height, width) for size in sizes):
        limits = torch.tensor(sizes, device=mean.device)
        below = torch.arange(height, device=mean.device)[None, :, None] >= limits[:, 0, None, None]
        right = torch.arange(width, device=mean.device)[None, None, :] >= limits[:, 1, None, None]
        mask = below | right
    batch = torch.stack(padded)
    if batch.device.type == "cpu":
        # The layout passes on from convolution to convolution; a ResNet's are faster in it (docs/benchmarks.md).
        batch = batch.contiguous(memory_format=torch.channels_last)
    return ImageBatch(batch, mask, sizes)


def labels_of(batched_inputs: list[dict]) -> list[Instances]:
    """Each image's objects.

    Raises:
        DataError: an image without labels.
    """
    for entry in batched_inputs:
        if "instances" not in entry:
            raise DataError(
                f"A training image ({entry.get('file_name', 'without a file name')}) has no 'instances'. Train on a "
                "data set with annotations (DATASETS.TRAIN)."
            )
    return [entry["instances"] for entry in batched_inputs]


def normalised_targets(instances: list[Instances], sizes: list[tuple[int, int]], device: torch.device) -> Targets:
    """Ground truth of a batch, padded on the host and copied at once.

    Args:
        instances: with ``gt_classes`` and ``gt_boxes`` in pixels. sizes: (height, width) of each image before padding.
    """
    counts = [len(x) for x in instances]
    labels = pad_sequence([x.gt_classes.long() for x in instances], batch_first=True)
    boxes = pad_sequence([to_centres(x.gt_boxes.tensor.float()) for x in instances], batch_first=True)
    scale = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    columns = torch.arange(labels.shape[1], device=labels.device)
    valid = columns[None, :] < torch.tensor(counts, device=labels.device)[:, None]
    boxes = boxes / scale[:, None, :]
    labels, boxes, valid = (values.to(device, non_blocking=True) for values in (labels, boxes, valid))
    return Targets(labels, boxes, valid, counts)
