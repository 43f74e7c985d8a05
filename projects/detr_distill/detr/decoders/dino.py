"""The decoder of DINO (2203.03605).

Letters: B images, Q queries, C width.
"""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from ...registry import DECODER_REGISTRY
from .dab_deformable import DabDeformableDecoder


@DECODER_REGISTRY.register()
class DinoDecoder(DabDeformableDecoder):
    """The decoder of DINO: the positions are not scaled, and the heads read normalised content [C].

    Looking forward twice, the box of a layer is counted from the box that the layer before has predicted, with its
    gradient: a box head learns from its own layer and from the next one [P]. Attention is taught by one layer alone.

    Args:
        look_forward_twice: see above. shared_heads: one class and box head for all layers, as in the authors' networks
            [C]. Others as in :class:`DabDeformableDecoder`.
    """

    size_bias = 0.0

    @configurable
    def __init__(self, *, look_forward_twice: bool = True, shared_heads: bool = True, **arguments):
        super().__init__(shared_heads=shared_heads, **arguments)
        self.look_forward_twice = look_forward_twice

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR.DECODER
        return {
            **super().from_config(cfg),
            "look_forward_twice": node.LOOK_FORWARD_TWICE,
            "shared_heads": node.SHARED_HEADS,
        }

    def _build_rest(self) -> None:
        self.norm = nn.LayerNorm(self.width)

    def _position(self, content: Tensor, anchor: Tensor, index: int) -> Tensor:
        return self._embed(content, anchor)

    def _finish(self, content: Tensor) -> Tensor:
        return self.norm(content)
