"""What an attention map is made of, for losses that compare maps without holding any.

Letters: B images, H heads, Q queries, S keys, e width of a head, M chosen queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .rows import take_rows

# What a loss may ask the decoder to keep: maps, or what they are made of. Where one asks for maps, maps are kept.
SELF_ATTENTION = "self_attention"
CROSS_ATTENTION = "cross_attention"
SELF_FACTORS = "self_attention as queries and keys"
CROSS_FACTORS = "cross_attention as queries and keys"
FACTORS = {SELF_ATTENTION: SELF_FACTORS, CROSS_ATTENTION: CROSS_FACTORS}


class Keep(IntEnum):
    """What an attention hands over beside its output; ``False`` and ``True`` are the first two."""

    NOTHING = 0
    MAP = 1
    FACTORS = 2

    @classmethod
    def of(cls, capture: frozenset[str], name: str) -> Keep:
        """What a step's ``capture`` asks of the attention ``name``, ``SELF_ATTENTION`` or ``CROSS_ATTENTION``."""
        if name in capture:
            return cls.MAP
        return cls.FACTORS if FACTORS[name] in capture else cls.NOTHING


@dataclass
class AttentionFactors:
    """Queries and keys of an attention; its map is the softmax of their products over the keys.

    Attributes:
        query: (B, H, Q, e). key: (B, H, S, e). Both as they are multiplied, before the scale ``1 / sqrt(e)``.
        mask: bool, broadcastable to (B, 1, Q, S), True where a query may not look; None: nowhere.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.dim() == 2:  # (Q, S), of all images
            self.mask = self.mask[None, None]

    def map(self, bias: Tensor | None = None) -> Tensor:
        """(B, H, Q, S) in float32, rows adding up to 1; ``bias``, of that shape, is added before the softmax."""
        # Scaled before the product, which float16 could overflow.
        scores = (self.query / math.sqrt(self.query.shape[-1]) @ self.key.transpose(-2, -1)).float()
        if bias is not None:
            scores = scores + bias
        if self.mask is not None:
            scores = scores.masked_fill(self.mask, -torch.inf)
        return scores.softmax(-1)

    def select(self, images: slice) -> AttentionFactors:
        """Those of some of the images."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[images]
        return AttentionFactors(self.query[images], self.key[images], mask)

    def first_keys(self, count: int) -> AttentionFactors:
        """As if there were no further keys."""
        mask = self.mask if self.mask is None or self.mask.shape[-1] == 1 else self.mask[..., :count]
        return AttentionFactors(self.query, self.key[:, :, :count], mask)

    def split(self, sizes: list[int], dim: int = 2) -> tuple[AttentionFactors, ...]:
        """Those of consecutive queries, ``sizes`` of them each; ``dim`` is theirs, as for a map."""
        assert dim == 2
        masks: tuple[Tensor | None, ...] = (self.mask,) * len(sizes)
        if self.mask is not None and self.mask.shape[2] > 1:
            masks = self.mask.split(sizes, dim=2)
        parts = zip(self.query.split(sizes, dim=2), masks, strict=True)
        return tuple(AttentionFactors(query, self.key, mask) for query, mask in parts)

    def take_queries(self, rows: Tensor) -> AttentionFactors:
        """Those of chosen queries (B, M)."""
        mask = self.mask
        if mask is not None and mask.shape[2] > 1:
            mask = take_rows(mask.transpose(1, 2).expand(len(rows), -1, -1, -1), rows).transpose(1, 2)
        return AttentionFactors(_take(self.query, rows), self.key, mask)

    def take_keys(self, rows: Tensor, weight: Tensor | None = None) -> AttentionFactors:
        """As if there were no keys but the chosen ones (B, M), without those of ``weight`` 0 where it is given."""
        mask = self.mask
        if mask is not None and mask.shape[3] > 1:
            index = rows[:, None, None, :].expand(-1, *mask.shape[1:3], -1)
            mask = mask.expand(len(rows), -1, -1, -1).gather(3, index)
        if weight is not None:
            padding = (weight == 0)[:, None, None, :]
            mask = padding if mask is None else mask | padding
        return AttentionFactors(self.query, _take(self.key, rows), mask)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """(B, H, N, e) and (B, M) to (B, H, M, e)."""
    return take_rows(values.transpose(1, 2), rows).transpose(1, 2)
