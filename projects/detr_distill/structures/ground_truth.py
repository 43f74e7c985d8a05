"""The objects of a batch, read once a step and used by every part.

Letters: B images, G objects (padded to the image with the most).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import mean_over_processes
from ..errors import DataError
from .transfer import constant, copy_to

if TYPE_CHECKING:
    from detectron2.structures import BitMasks, PolygonMasks


class UnknownOnHostError(RuntimeError):
    """A part asked the host for what only the device knows in a captured step."""


class UnknownCounts(list[int]):
    """The objects of each image, where the host must not know them: a captured step would keep their first values."""

    def _refuse(self, *_: object) -> int:
        raise UnknownOnHostError("a part counts the objects of each image on the host")

    def __iter__(self) -> Iterator[int]:
        self._refuse()
        return iter(())

    __len__ = __getitem__ = __bool__ = _refuse  # type: ignore[assignment]


@dataclass
class GroundTruth:
    """Ground truth of a batch, padded to the image with the most objects.

    Attributes:
        labels: (B, G) long. boxes: (B, G, 4), normalised by each image's own size.
        valid: (B, G) bool, False on padding.
        counts: objects of each image, on the host.
        corners: (B, G, 4), (x1, y1, x2, y2) in pixels, on the host; None for objects that are no image's own, such as
            disturbed ones.
        masks: of each image, detectron2's; None where it has none.
        labelled: whether each image was labelled at all, which one without objects may be; empty: all. A detection
            loss refuses images without labels; what learns from unlabelled ones asks here.
        sizes: (height, width) of each image before padding, in pixels; empty where ``corners`` is None.
        objects_a_rank: scalar on the device, where it has been exchanged with other processes already.
        scores: (B, G), what an object's class is to be scored; None: 1.
        weights: (B,), how much an image's losses count; None: 1, and 0 for images that are not labelled.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    counts: list[int]
    corners: Tensor | None = None
    masks: tuple[BitMasks | PolygonMasks | None, ...] = ()
    labelled: tuple[bool, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    objects_a_rank: Tensor | None = None
    scores: Tensor | None = None
    weights: Tensor | None = None

    @property
    def num_labelled(self) -> int:
        """How many images are labelled; these come first in a batch that has others."""
        return sum(self.labelled) if self.labelled else len(self.labels)

    def check_order(self) -> None:
        """Raises DataError where no image is labelled, or one that is stands behind one that is not."""
        if self.num_labelled == 0 or not all(self.labelled[: self.num_labelled]):
            raise DataError(
                "A training batch has no 'instances' at its front, where labelled images come before all others: "
                f"{['labelled' if found else 'not' for found in self.labelled]}. Train on a data set with annotations "
                "(DATASETS.TRAIN), and name sets without them in DATASETS.UNLABELED."
            )

    @cached_property
    def image_weight(self) -> Tensor | None:
        """(B,) float: ``weights``, else 0 for images that are not labelled, on their device; None where all count 1."""
        if self.weights is not None or all(self.labelled):
            return self.weights
        return constant(self.labelled, self.labels.device)

    @cached_property
    def device_counts(self) -> Tensor:
        """(B,) long: ``counts`` on the device."""
        return self.valid.sum(1)

    @cached_property
    def num_objects(self) -> Tensor:
        """Scalar: the objects of the batch, mean over the ranks, at least 1: what detection losses are divided by."""
        total = self.objects_a_rank
        if total is None:
            total = mean_over_processes(self.valid.sum().float())
        return total.clamp(min=1)

    def repeat(self, times: int) -> GroundTruth:
        """Every object ``times`` times, its copies side by side: copy c of object g is at g * times + c.

        An image's real objects stay in front of its padding.
        """
        labels, boxes, valid = (x.repeat_interleave(times, dim=1) for x in (self.labels, self.boxes, self.valid))
        counts = self.counts if isinstance(self.counts, UnknownCounts) else [count * times for count in self.counts]
        total = None if self.objects_a_rank is None else self.objects_a_rank * times
        scores = None if self.scores is None else self.scores.repeat_interleave(times, dim=1)
        return GroundTruth(
            labels,
            boxes,
            valid,
            counts,
            labelled=self.labelled,
            objects_a_rank=total,
            scores=scores,
            weights=self.weights,
        )

    def at_least_one(self) -> GroundTruth:
        """The same objects, with a padded one where the whole batch has none; padded once."""
        return self if self.labels.shape[1] else self._padded

    @cached_property
    def _padded(self) -> GroundTruth:
        """The same with one more padded object an image."""
        return dataclasses.replace(
            self,
            labels=F.pad(self.labels, (0, 1)),
            boxes=F.pad(self.boxes, (0, 0, 0, 1)),
            valid=F.pad(self.valid, (0, 1)),
            corners=None if self.corners is None else F.pad(self.corners, (0, 0, 0, 1)),
            scores=None if self.scores is None else F.pad(self.scores, (0, 1)),
        )

    def select(self, images: slice) -> GroundTruth:
        """The objects of some of the images."""
        return GroundTruth(
            labels=self.labels[images],
            boxes=self.boxes[images],
            valid=self.valid[images],
            counts=self.counts[images],
            corners=None if self.corners is None else self.corners[images],
            masks=self.masks[images],
            labelled=self.labelled[images],
            sizes=self.sizes[images],
            scores=None if self.scores is None else self.scores[images],
            weights=None if self.weights is None else self.weights[images],
        )

    @cached_property
    def corners_on_device(self) -> Tensor:
        """(B, G, 4) corners in pixels, on the device of ``boxes``, copied there once."""
        assert self.corners is not None
        return copy_to(self.corners, self.boxes.device)

    @staticmethod
    def count_valid(counts: list[int], rows: int) -> Tensor:
        """(B, rows) bool on the host: True for the first ``counts[b]`` rows of each image."""
        return torch.arange(rows)[None, :] < torch.tensor(counts)[:, None]
