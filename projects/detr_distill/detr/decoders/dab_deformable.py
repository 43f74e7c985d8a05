"""The decoder of DAB-Deformable DETR (2201.12329): deformable attention around anchor boxes.

Letters: B images, Q queries, C width, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...registry import DECODER_REGISTRY
from ...structures import DecoderOutput, Memory
from ..boxes import DAB_EPSILON, inverse_sigmoid
from ..keys import POINT_TEMPERATURE
from ..layers.attention import GroupLayout
from ..layers.deformable import project_values
from ..layers.feed_forward import PerceptronHead
from ..layers.position import box_positions
from .base import DecoderRecord
from .deformable import SamplingDecoder, on_levels


@DECODER_REGISTRY.register()
class DabDeformableDecoder(SamplingDecoder):
    """Deformable attention around anchor boxes that every layer moves.

    Reads the queries' ``position`` (B, Q, 4), box logits, and starts from their ``content``. The position that is added
    to queries and keys is read from the sine embedding of the anchor, as it lies on the finest padded level [C], and
    scaled by the content from the second layer on. A layer's box, without gradient, is the next layer's anchor.

    Attributes:
        temperature: of the anchors' sine embedding.
        shared_heads: one class and box head for all layers. look_forward_twice: see :class:`DinoDecoder`.
    """

    position_kind = "box_logits"
    published_epsilon = DAB_EPSILON
    shared_heads: bool = False
    look_forward_twice: bool = False

    temperature: float = POINT_TEMPERATURE

    @property
    def has_own_heads(self) -> bool:
        """Unless they are shared."""
        return not self.shared_heads

    def forward(
        self, memory: Memory, content: Tensor, position: Tensor, layout: GroupLayout, capture: frozenset[str]
    ) -> list[DecoderOutput]:
        """See the base class."""
        start = anchor = position.float().sigmoid()
        record = DecoderRecord(capture)
        logits, boxes = [], []
        values = project_values([layer.cross_attention for layer in self.layers], memory)
        for index, layer in enumerate(self.layers):
            heads = self.heads[min(index, len(self.heads) - 1)]
            reference = on_levels(anchor, memory)
            position = self._position(content, reference[:, :, 0], index)
            content, maps, points = layer(content, position, reference, values[index], layout, memory, capture)
            hidden = self._finish(content)
            record.add(hidden, maps, points=points)
            logits.append(heads.class_head(hidden))
            boxes.append(self._move(start, heads.box_head(hidden)))
            # The next anchor is read before the norm, the box after it [C].
            moved = boxes[-1] if hidden is content else self._move(anchor, heads.box_head(content))
            anchor = moved.detach()
            start = moved if self.look_forward_twice else anchor
        all_hidden = torch.stack(record.hidden)
        return record.outputs(all_hidden, torch.stack(logits), torch.stack(boxes), self.activation, layout)

    def _build_start(self) -> None:
        self.position_head = PerceptronHead(2 * self.width, self.width, self.width, num_layers=2)
        self._build_rest()

    def _build_rest(self) -> None:
        self.scale_head = PerceptronHead(self.width, self.width, self.width, num_layers=2)

    def _position(self, content: Tensor, anchor: Tensor, index: int) -> Tensor:
        """(B, Q, C): the position that layer ``index`` adds, from ``content`` (B, Q, C) and ``anchor`` (B, Q, 4)."""
        position = self._embed(content, anchor)
        return position if index == 0 else position * self.scale_head(content)

    def _embed(self, content: Tensor, anchor: Tensor) -> Tensor:
        return self.position_head(box_positions(anchor, self.width, self.temperature).to(content.dtype))

    def _finish(self, content: Tensor) -> Tensor:
        """(B, Q, C): what the heads read."""
        return content

    def _move(self, anchor: Tensor, offsets: Tensor) -> Tensor:
        """Boxes (B, Q, 4) from offsets (B, Q, 4) in logit space, float32."""
        return (offsets.float() + inverse_sigmoid(anchor, self.epsilon)).sigmoid()
