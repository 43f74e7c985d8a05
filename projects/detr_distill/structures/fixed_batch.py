"""A batch at a fixed place of the device's memory, so that a step that reads it can be captured and run again.

Letters: B images, G objects (padded).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..distributed import count_processes, mean_over_processes
from .ground_truth import GroundTruth, UnknownCounts
from .transfer import copy_to


class FixedBatch(list[dict]):
    """Images and objects in tensors that stay; a detector takes it like a list of detectron2's dicts.

    An entry has ``image`` (3, height, width), padded, and ``extent`` (2,), height and width of what is image.

    Args:
        images: B. size: (height, width), padded. objects: G. dtype: of the pixels.
    """

    def __init__(self, images: int, size: tuple[int, int], objects: int, dtype: torch.dtype, device: torch.device):
        self.pixels = torch.zeros(images, 3, *size, dtype=dtype, device=device)
        self.extents = torch.zeros(images, 2, dtype=torch.long, device=device)
        self.labels = torch.zeros(images, objects, dtype=torch.long, device=device)
        self.boxes = torch.zeros(images, objects, 4, device=device)
        self.valid = torch.zeros(images, objects, dtype=torch.bool, device=device)
        self.objects_a_rank = torch.zeros((), device=device)
        super().__init__(
            {"image": image, "extent": extent} for image, extent in zip(self.pixels, self.extents, strict=True)
        )

    def fill(self, images: list[Tensor], truth: GroundTruth) -> None:
        """Copies a batch here, without waiting for the device.

        Args:
            images: (3, height, width) each. truth: their objects, on the host.
        """
        for place, image in zip(self.pixels, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]].copy_(copy_to(image, place.device))
        count = truth.labels.shape[1]
        self.extents.copy_(copy_to(torch.tensor([image.shape[1:] for image in images]), self.extents.device))
        self.valid.zero_()
        for place, values in ((self.labels, truth.labels), (self.boxes, truth.boxes), (self.valid, truth.valid)):
            place[:, :count].copy_(copy_to(values, place.device))
        if count_processes() > 1:  # here, since what is captured must not talk to other processes
            self.objects_a_rank.copy_(mean_over_processes(self.valid.sum().float()))

    @property
    def truth(self) -> GroundTruth:
        """The objects; anew each time, since a ground truth keeps what it has computed."""
        known = self.objects_a_rank if count_processes() > 1 else None
        return GroundTruth(self.labels, self.boxes, self.valid, UnknownCounts(), objects_a_rank=known)


def share_object_count(truth: GroundTruth) -> GroundTruth:
    """The same, with its number of objects exchanged between several processes, where it is not yet.

    Called before the network runs: some processes may have a batch at a fixed place, which was exchanged when it was
    filled, and others not; what all exchange afterwards then comes in one order.
    """
    if count_processes() == 1 or truth.objects_a_rank is not None:
        return truth
    return dataclasses.replace(truth, objects_a_rank=mean_over_processes(truth.valid.sum().float()))
