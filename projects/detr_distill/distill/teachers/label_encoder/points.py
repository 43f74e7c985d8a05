"""The label encoder's network over the rows of an image, after PointNet (1612.00593).

Letters: B images, N rows an image, D numbers a row.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUT_WIDTH = 256


class NormalisedLinear(nn.Linear):
    """Linear, layer normalisation without parameters, ReLU [C]."""

    def forward(self, values: Tensor) -> Tensor:
        values = super().forward(values)
        return F.relu(F.layer_norm(values, values.shape[-1:]))


class TransformNetwork(nn.Module):
    """A square matrix for each row, read from the row itself, without an identity added to it [C].

    The last layer has 257 width^2 weights: wide rows want a class embedding.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        widths = (width, 64, 128, 1024, 512, 256)
        self.layers = nn.Sequential(*(NormalisedLinear(a, b) for a, b in itertools.pairwise(widths)))
        self.matrix = nn.Linear(256, width * width)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (B, N, width) times their own matrices."""
        matrices = self.matrix(self.layers(rows)).unflatten(-1, (self.width, self.width))
        return (rows.unsqueeze(-2) @ matrices).squeeze(-2)


class PointEncoder(nn.Module):
    """Embeds each row in the light of all rows of its image.

    D -> transform -> 64 -> transform -> 128 -> 1024 -> maximum over the image, joined with the row's 64 -> 256.
    Source: LGD (2109.11496) [C].
    """

    def __init__(self, width: int):
        super().__init__()
        self.row_transform = TransformNetwork(width)
        self.expand = NormalisedLinear(width, 64)
        self.feature_transform = TransformNetwork(64)
        self.image_layers = nn.Sequential(NormalisedLinear(64, 128), NormalisedLinear(128, 1024))
        self.join = NormalisedLinear(64 + 1024, OUTPUT_WIDTH)

    def forward(self, rows: Tensor, valid: Tensor) -> Tensor:
        """Rows (B, N, D) and which of them are objects (B, N) to embeddings (B, N, 256)."""
        local = self.feature_transform(self.expand(self.row_transform(rows)))
        # Nothing is below 0 behind a ReLU, so padding set to 0 is never the maximum, and an image without rows has 0.
        image = self.image_layers(local).masked_fill(~valid.unsqueeze(-1), 0).amax(1, keepdim=True)
        return self.join(torch.cat([local, image.expand(-1, local.shape[1], -1)], dim=-1))
