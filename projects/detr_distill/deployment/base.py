"""What graphs of all detectors have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..detr.preprocess import padding_of

SMALLEST = 32  # side of an image that any graph takes, in pixels


class Graph(nn.Module):
    """From padded images to detections, without lists and without sizes that the host has to know.

    Args:
        detector: put into eval mode. input_format: "BGR" or "RGB", which it
            reads.

    Attributes:
        multiple: of which the sides of the images are, in pixels. most_images: of a batch; None: any number.
        coarsest: stride of the coarsest map, in pixels: an exporter wants more than one cell.
    """

    multiple: int = 1
    most_images: int | None = None
    coarsest: int = 1

    def __init__(self, detector: nn.Module, input_format: str):
        super().__init__()
        self.detector = detector
        self.flips = input_format == "BGR"
        self.eval()

    @property
    def smallest(self) -> int:
        """Least side of an image, in pixels."""
        return -(-max(SMALLEST, self.coarsest + 1) // self.multiple) * self.multiple

    @abstractmethod
    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of each image, best first.

        Letters: B images, N detections of an image.

        Args:
            images: (B, 3, height, width) uint8 in the order RGB, padded on the right and below with anything.
            sizes: (B, 2) long, height and width of each image without its padding, in pixels.

        Returns:
            boxes (B, N, 4) as x1, y1, x2, y2 in pixels of the image, scores (B, N) in [0, 1], labels (B, N) long, each
            an index into the class names.
        """

    def prepare(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images in the detector's order, 0 in the padding, and the padding (B, height, width) bool."""
        mean, std = self.statistics()
        padding = padding_of(images.shape[-2], images.shape[-1], sizes)
        values = (images.flip(1) if self.flips else images).to(mean.dtype)
        return ((values - mean) / std).masked_fill(padding.unsqueeze(1), 0.0), padding

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (3, 1, 1) of pixels, in the order of channels that the detector reads."""
        return self.detector.get_buffer("pixel_mean"), self.detector.get_buffer("pixel_std")


def in_pixels(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 4): width, height, width, height of sizes (B, 2), which are height and width."""
    return sizes.flip(1).repeat(1, 2).to(dtype)
