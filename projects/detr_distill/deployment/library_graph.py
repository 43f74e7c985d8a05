"""A detector of transformers as a graph of tensors alone: what is exported.

Letters: B images, H and W their height and width with padding, S a side after stretching.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..detr.boxes import to_corners
from ..detr.detections import best_predictions
from ..hugging_face import TransformersStudent
from ..hugging_face.network import ACTIVATIONS
from .base import Graph, in_pixels

COARSEST = 64  # stride of four levels on a ResNet


class LibraryGraph(Graph):
    """Unequal images are stretched to one size where the detector does that, else padded and masked, as in training."""

    detector: TransformersStudent

    def __init__(self, detector: TransformersStudent, input_format: str):
        super().__init__(detector, "RGB")  # as its network reads images, whatever the data has
        if detector.size is None:
            self.coarsest = COARSEST

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class; N is ``detections_per_image``, or as many as there are."""
        detector = self.detector
        if detector.size is None:
            values, padding = self.prepare(images, sizes)
            visible = (~padding).long()
        else:
            values = (stretch_each(images, sizes, detector.size) - detector.mean) / detector.std
            visible = torch.ones_like(values[:, 0], dtype=torch.long)
        output = detector.model(pixel_values=values, pixel_mask=visible)
        activation = ACTIVATIONS[detector.network.config.model_type]
        logits = output.logits
        probabilities = logits.softmax(-1)[..., :-1] if activation == "softmax" else logits.sigmoid()
        scores, labels, query = best_predictions(probabilities, activation, detector.detections_per_image)
        corners = to_corners(output.pred_boxes).clamp(0, 1) * in_pixels(sizes, values.dtype).unsqueeze(1)
        return corners.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)), scores, labels

    def statistics(self) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return self.detector.mean, self.detector.std


def stretch_each(images: Tensor, sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """Each image, without its padding, in one size, as torch's antialiased bilinear interpolation gives it.

    That function takes one scale for all; here each image has its own, in the two matrices that weigh rows and columns.

    Args:
        images: (B, 3, H, W). sizes: (B, 2) long, height and width of each without padding. size: (height, width).

    Returns:
        (B, 3, height, width) float32.
    """
    rows = interpolation(sizes[:, 0], images.shape[-2], size[0])
    columns = interpolation(sizes[:, 1], images.shape[-1], size[1])
    return rows.unsqueeze(1) @ images.float() @ columns.transpose(1, 2).unsqueeze(1)


def interpolation(lengths: Tensor, padded: int, side: int) -> Tensor:
    """(B, S, padded): what each pixel of a stretched side is made of, of the first ``lengths`` (B,) pixels.

    The weights are a triangle around where the pixel lies in the image, as wide as a pixel of the coarser of the two.
    """
    scale = (lengths.float() / side).view(-1, 1, 1)
    centre = (torch.arange(side, device=lengths.device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(padded, device=lengths.device).view(1, 1, -1)
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * (pixel < lengths.view(-1, 1, 1))
    return weights / weights.sum(-1, keepdim=True)
