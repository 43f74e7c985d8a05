"""The attentions of Anchor DETR (2109.07107) and the embeddings of points that go with them.

Row-column decoupled attention looks along the two axes of the feature map one after the other: its memory grows with
rows plus columns of cells, where a dense map grows with their product. Standard attention has the same interface.

Letters: B images, Q queries, C width, H heads, X columns and Y rows of cells, S = Y * X memory tokens, c = C / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...structures import Keep, Memory
from ...structures.constants import is_graph
from ...structures.levels import axis_positions, visible_axes, visible_levels
from .attention import Kept, MultiHeadAttention, check_heads, clear_biases, split_heads
from .feed_forward import PerceptronHead, drop
from .initialisation import deal_pairs
from .position import point_positions, sine_embedding

# Of both coordinates together, or of x and of y.
Embeddings = tuple[Tensor, ...]


class PointEmbedding(nn.Module):
    """Points through a sine embedding and a perceptron of two layers [P].

    Args:
        width: C. temperature: of the sine embedding.
    """

    def __init__(self, width: int, temperature: float):
        super().__init__()
        self.width, self.temperature = width, temperature
        self.perceptron = PerceptronHead(width, width, width, num_layers=2)


class AxisEmbedding(PointEmbedding):
    """x and y of a point, each by itself, by the same perceptron [P]."""

    def points(self, points: Tensor) -> Embeddings:
        """(B, Q, 2) to the embeddings of x and of y, (B, Q, C) each."""
        return self._embed(points[..., 0]), self._embed(points[..., 1])

    def cells(self, memory: Memory) -> Embeddings:
        """The embeddings of the columns (B, X, C) and of the rows (B, Y, C)."""
        ((x, y),) = axis_positions(memory)
        return self._embed(x), self._embed(y)

    def every_cell(self, cells: Embeddings) -> Embeddings:
        """What :meth:`cells` gives, for each cell as a query: (B, S, C) each."""
        x, y = cells
        shape = (y.shape[1], x.shape[1])
        columns, rows = x.unsqueeze(1).expand(-1, *shape, -1), y.unsqueeze(2).expand(-1, *shape, -1)
        return columns.flatten(1, 2), rows.flatten(1, 2)

    @torch.no_grad()
    def align(self, gain: float) -> None:
        """Starts as the sine embedding itself, times ``gain``: sines plus one pass the ReLU as they are [R]."""
        first, second = self.perceptron.layers
        for layer, factor, shift in ((first, 1.0, 1.0), (second, gain, -gain)):
            layer.weight.copy_(factor * torch.eye(self.width))
            layer.bias.fill_(shift)

    def _embed(self, values: Tensor) -> Tensor:
        return self.perceptron(sine_embedding(values.unsqueeze(-1) * (2 * math.pi), self.width, self.temperature))


class PlaneEmbedding(PointEmbedding):
    """Both coordinates of a point together, row first [P]; methods as in :class:`AxisEmbedding`, one embedding each."""

    def points(self, points: Tensor) -> Embeddings:
        """(B, Q, 2) to (B, Q, C)."""
        return (self.perceptron(point_positions(points, self.width, self.temperature)),)

    def cells(self, memory: Memory) -> Embeddings:
        """The embedding of every cell (B, S, C)."""
        ((x, y),) = axis_positions(memory)
        shape = (-1, y.shape[1], x.shape[1])
        points = torch.stack([x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)], dim=-1)
        return self.points(points.flatten(1, 2))

    def every_cell(self, cells: Embeddings) -> Embeddings:
        """What :meth:`cells` gives."""
        return cells


class RowColumnAttention(nn.Module):
    """Row-column decoupled attention (RCDA).

        out(q) = sum over y of A_y(q, y) * sum over x of A_x(q, x) * V(y, x)

    A_x compares the query at its x with the mean of every column, A_y the query at its y with the mean of every row
    [P]. Means leave the padding out; the authors' take it in, so that results depend on the batch [R]. The map of the
    whole image is the outer product of the two, and adds up to 1 like them.

    Args:
        width: C. num_heads: H. dropout: on the weights of both axes.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_x, self.query_y = nn.Linear(width, width), nn.Linear(width, width)
        self.key_x, self.key_y = nn.Linear(width, width), nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        # Drawn as one (5C, C) matrix by the authors: the gain gives separate matrices the same range [C].
        for projection in (self.query_x, self.query_y, self.key_x, self.key_y, self.value_projection):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(1 / 3))
        clear_biases(self)

    @torch.no_grad()
    def align(self) -> None:
        """Starts the projections of queries and keys as one permutation: attention starts at the query's point [R]."""
        start = deal_pairs(self.value_projection.in_features, self.num_heads)
        for projection in (self.query_x, self.query_y, self.key_x, self.key_y):
            projection.weight.copy_(start)

    def read_projection(self) -> nn.Module:
        """What a query reads of a token (B, S, C) that it attends to alone."""
        return nn.Sequential(self.value_projection, self.output_projection)

    def over_cells(
        self, query: Tensor, points: Embeddings, memory: Memory, cells: Embeddings, capture: Keep = Keep.NOTHING
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from queries to the cells of one level.

        Args:
            query: (B, Q, C). points: embeddings of the queries' x and y, (B, Q, C) each. memory: of one level.
            cells: embeddings of columns (B, X, C) and rows (B, Y, C). capture: whether to return the map.

        Returns:
            (B, Q, C), and the map before dropout (B, H, Q, S) in float32 or None.
        """
        tokens, (visible,) = memory.tokens, visible_levels(memory, torch.bool)
        grid, weight = tokens.unflatten(1, memory.shapes[0]), visible.unsqueeze(-1).to(tokens.dtype)
        columns, rows = ((grid * weight).sum(axis) / weight.sum(axis).clamp(min=1) for axis in (1, 2))
        hidden_x, hidden_y = (~axis for axis in visible_axes(visible))
        map_x = self._map(self.query_x(query + points[0]), self.key_x(columns + cells[0]), hidden_x)
        map_y = self._map(self.query_y(query + points[1]), self.key_y(rows + cells[1]), hidden_y)
        values = split_heads(self.value_projection(tokens), self.num_heads).unflatten(2, memory.shapes[0])
        output = self._sum(self._drop(map_x).to(values.dtype), self._drop(map_y).to(values.dtype), values)
        attention = (map_y.unsqueeze(-1) * map_x.unsqueeze(-2)).flatten(-2) if capture else None
        return self.output_projection(output.transpose(1, 2).flatten(2)), attention

    def _map(self, query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
        """(B, Q, C), (B, N, C) and (B, N) to the weights of one axis (B, H, Q, N), float32."""
        query, key = split_heads(query, self.num_heads), split_heads(key, self.num_heads)
        scores = (query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)).float()
        return scores.masked_fill(hidden[:, None, None, :], -torch.inf).softmax(-1)

    def _drop(self, weights: Tensor) -> Tensor:
        return drop(weights, self.dropout) if self.training and self.dropout else weights

    @staticmethod
    def _sum(map_x: Tensor, map_y: Tensor, values: Tensor) -> Tensor:
        """(B, H, Q, X), (B, H, Q, Y) and (B, H, Y, X, c) to (B, H, Q, c); the longer axis first, to keep less."""
        if not is_graph() and map_x.shape[-1] > map_y.shape[-1]:  # of a graph no size is known
            rows = torch.einsum("bhqx,bhyxc->bhqyc", map_x, values)
            return torch.einsum("bhqy,bhqyc->bhqc", map_y, rows)
        columns = torch.einsum("bhqy,bhyxc->bhqxc", map_y, values)
        return torch.einsum("bhqx,bhqxc->bhqc", map_x, columns)


class PlaneAttention(MultiHeadAttention):
    """Standard attention with the interface of :class:`RowColumnAttention`; one embedding of both coordinates."""

    def over_cells(
        self, query: Tensor, points: Embeddings, memory: Memory, cells: Embeddings, capture: Keep = Keep.NOTHING
    ) -> tuple[Tensor, Kept | None]:
        """As :meth:`RowColumnAttention.over_cells`."""
        tokens = memory.tokens
        return self(query + points[0], tokens + cells[0], tokens, mask=memory.key_mask, capture=capture)


CellAttention = RowColumnAttention | PlaneAttention
CellEmbedding = AxisEmbedding | PlaneEmbedding
# By `MODEL.DETR.ANCHOR.ATTENTION`.
ATTENTIONS: dict[str, type[CellAttention]] = {"row_column": RowColumnAttention, "standard": PlaneAttention}
EMBEDDINGS: dict[str, type[CellEmbedding]] = {"row_column": AxisEmbedding, "standard": PlaneEmbedding}
