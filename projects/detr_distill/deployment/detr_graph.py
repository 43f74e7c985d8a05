"""A DETR as a graph of tensors alone: what is exported.

Letters: B images, N detections of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..detr import DetrDetector
from ..detr.boxes import to_corners
from ..detr.detections import best_predictions
from ..detr.detector import Started
from ..structures import ImageBatch


class DetrGraph(nn.Module):
    """From padded images to detections, without lists and without sizes that the host has to know.

    Unequal images are padded and masked, as in training; :meth:`DetrDetector.detect` takes them one by one, since
    convolutions carry padding over an image's border.

    Args:
        detector: put into eval mode.
    """

    def __init__(self, detector: DetrDetector):
        super().__init__()
        self.detector = detector
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of each image, best first.

        Args:
            images: (B, 3, height, width) uint8 in the order RGB, padded on the right and below with anything.
            sizes: (B, 2) long, height and width of each image without its padding, in pixels.

        Returns:
            boxes (B, N, 4) as x1, y1, x2, y2 in pixels of the image, scores (B, N) in [0, 1], labels (B, N) long, each
            an index into the class names.
        """
        detector = self.detector
        images = pad_to_multiple(images, detector.size_divisibility)
        padding = padding_of(images, sizes)
        ordered = images.flip(1) if detector.input_format == "BGR" else images
        values = (ordered.to(detector.pixel_mean.dtype) - detector.pixel_mean) / detector.pixel_std
        batch = ImageBatch(values.masked_fill(padding.unsqueeze(1), 0.0), padding, [])
        memory = detector.input_projection(detector.backbone(batch.tensor), batch)
        output = detector.finish(Started(batch, memory)).outputs["own"]
        scores, labels, query = best_predictions(
            output.probabilities()[-1], output.activation, detector.detections_per_image
        )
        sides = sizes.flip(1).repeat(1, 2).to(values.dtype).unsqueeze(1)
        corners = to_corners(output.boxes[-1].float()).clamp(0, 1) * sides
        return corners.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)), scores, labels


def pad_to_multiple(images: Tensor, divisibility: int) -> Tensor:
    """Images (B, 3, height, width) with zeros on the right and below, up to multiples of ``divisibility`` pixels."""
    if divisibility <= 1:
        return images
    below, right = (-side % divisibility for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, below))


def padding_of(images: Tensor, sizes: Tensor) -> Tensor:
    """(B, height, width) bool, True where a pixel of ``images`` lies outside of ``sizes`` (B, 2), height and width."""
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    return (rows[None, :, None] >= sizes[:, 0, None, None]) | (columns[None, None, :] >= sizes[:, 1, None, None])
