"""Matched indices of two sets, for every decoder layer and image.

Letters: L decoder layers, B images, M pairs (padded).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import take_rows


@dataclass
class Pairs:
    """Matched indices, padded with weight 0.

    Attributes:
        query: (L, B, M) long, index of the query. target: (L, B, M) long, index of what it is matched with.
        weight: (L, B, M) float, 1 for a pair and 0 for padding.
        query_in_order, target_in_order: the index is 0, 1, ... M - 1 everywhere and M is the whole axis, so that
            nothing has to be gathered; known on the host.
    """

    query: Tensor
    target: Tensor
    weight: Tensor
    query_in_order: bool = False
    target_in_order: bool = False

    def slice_layers(self, layers: slice) -> Pairs:
        return dataclasses.replace(
            self, query=self.query[layers], target=self.target[layers], weight=self.weight[layers]
        )

    def expand_layers(self, layers: int) -> Pairs:
        """The pairs of one layer (1, B, M) for each of many."""
        query, target, weight = (values.expand(layers, -1, -1) for values in (self.query, self.target, self.weight))
        return dataclasses.replace(self, query=query, target=target, weight=weight)

    def layer(self, layer: int) -> Pairs:
        """The pairs of one layer, (B, M) each."""
        return dataclasses.replace(self, query=self.query[layer], target=self.target[layer], weight=self.weight[layer])

    def select(self, images: slice) -> Pairs:
        """The pairs of some of the images."""
        return dataclasses.replace(
            self, query=self.query[:, images], target=self.target[:, images], weight=self.weight[:, images]
        )

    def has_query(self, queries: int) -> Tensor:
        """(L, B, queries) float: 1 for a query that is in a pair."""
        return self.to_queries(torch.ones_like(self.weight), queries)

    def to_queries(self, values: Tensor, queries: int, fill: float = 0) -> Tensor:
        """The pairs' values (L, B, M) at their queries, (L, B, queries); ``fill`` for a query that is in no pair."""
        # Padded pairs write to an extra last query that is dropped, so that they overwrite nothing.
        query = torch.where(self.weight > 0, self.query, queries)
        return values.new_full((*query.shape[:2], queries + 1), fill).scatter_(2, query, values)[..., :-1]

    def take_query(self, values: Tensor) -> Tensor:
        """(L, B, Q, D) to the queries' rows (L, B, M, D)."""
        return values if self.query_in_order else take_rows(values, self.query)

    def take_target(self, values: Tensor) -> Tensor:
        """(L, B, T, D) to the targets' rows (L, B, M, D)."""
        return values if self.target_in_order else take_rows(values, self.target)


def no_pairs(reference: Tensor, layers: int, images: int) -> Pairs:
    """The pairs of a batch in which nothing can be matched, on the device of ``reference``."""
    empty = torch.zeros(layers, images, 0, dtype=torch.long, device=reference.device)
    return Pairs(empty, empty, empty.float())


def join_pairs(parts: Sequence[Pairs], sizes: Sequence[int]) -> Pairs:
    """The pairs of several groups of queries with the same targets, as those of one group.

    Args:
        sizes: queries of each group; in the joined one they stand one after the other.
    """
    if len(parts) == 1:
        return parts[0]
    starts = itertools.accumulate(sizes, initial=0)
    query = [part.query + start if start else part.query for part, start in zip(parts, starts, strict=False)]
    target, weight = [part.target for part in parts], [part.weight for part in parts]
    return Pairs(torch.cat(query, dim=-1), torch.cat(target, dim=-1), torch.cat(weight, dim=-1))


def pairs_in_order(reference: Tensor, layers: int, images: int, count: int) -> Pairs:
    """Query i with target i, on the device of ``reference``."""
    index = torch.arange(count, device=reference.device).expand(layers, images, -1)
    return Pairs(index, index, torch.ones_like(index, dtype=torch.float32), True, True)
