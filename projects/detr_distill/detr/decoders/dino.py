"""The decoder of DINO (2203.03605).

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...config.keys import key
from ...registry import DECODER_REGISTRY
from .dab_deformable import DabDeformableDecoder


@DECODER_REGISTRY.register()
class DinoDecoder(DabDeformableDecoder):
    """The decoder of DINO: the positions are not scaled, and the heads read normalised content [C].

    Looking forward twice, the box of a layer is counted from the box that the layer before has predicted, with its
    gradient: a box head learns from its own layer and from the next one [P]. Attention is taught by one layer alone.

    Attributes:
        shared_heads: one class and box head for all layers, as in the authors' networks [C].
        look_forward_twice: see above.
    """

    size_bias = 0.0

    shared_heads: bool = key(
        True,
        "`DinoDecoder`: one class and box head for all layers instead of one a layer",
        path="MODEL.DETR.DECODER.SHARED_HEADS",
    )
    look_forward_twice: bool = key(
        True,
        "`DinoDecoder`: the loss of a layer's boxes reaches the box head of the layer before as well",
        path="MODEL.DETR.DECODER.LOOK_FORWARD_TWICE",
    )

    def _build_rest(self) -> None:
        self.norm = nn.LayerNorm(self.width)

    def _position(self, content: Tensor, anchor: Tensor, index: int) -> Tensor:
        return self._embed(content, anchor)

    def _finish(self, content: Tensor) -> Tensor:
        return self.norm(content)
