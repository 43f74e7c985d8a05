"""The attentions of Anchor DETR (2109.07107) and the embeddings of places that go with them.

Row-column decoupled attention looks along the two axes of the feature map one after the other: its memory grows with
rows plus columns of cells, where a dense map grows with their product. Standard attention has the same interface.

Letters: B images, Q queries, C width, H heads, X columns and Y rows of cells, S = Y * X memory tokens, c = C / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import Memory
from .attention import MultiHeadAttention, check_heads, split_heads
from .feed_forward import PerceptronHead, drop
from .position import point_positions, sine_embedding


def cell_places(memory: Memory) -> tuple[Tensor, Tensor]:
    """Centres of cells in [0, 1] over the image without padding [C]: x of the columns (B, X), y of the rows (B, Y).

    B = 1 without padding.
    """
    visible = _visible(memory, memory.tokens.device).float()
    x, y = visible[:, 0].cumsum(1), visible[:, :, 0].cumsum(1)
    return (x - 0.5) / x[:, -1:], (y - 0.5) / y[:, -1:]


def _visible(memory: Memory, device: torch.device) -> Tensor:
    """(B, Y, X) bool, False on padding; B = 1 without padding."""
    shape = memory.shapes[0]
    if memory.mask is None:
        return torch.ones(1, *shape, dtype=torch.bool, device=device)
    return ~memory.mask.unflatten(1, shape)


class AxisEmbedding(nn.Module):
    """x and y of a place, each through a sine embedding and one perceptron of two layers [P].

    Args:
        width: C. temperature: of the sine embedding.
    """

    def __init__(self, width: int, temperature: float):
        super().__init__()
        self.width, self.temperature = width, temperature
        self.perceptron = PerceptronHead(width, width, width, num_layers=2)

    def points(self, points: Tensor) -> tuple[Tensor, ...]:
        """(B, Q, 2) to the embeddings of x and of y, (B, Q, C) each."""
        return self._embed(points[..., 0]), self._embed(points[..., 1])

    def cells(self, memory: Memory) -> tuple[Tensor, ...]:
        """The embeddings of the columns (B, X, C) and of the rows (B, Y, C)."""
        x, y = cell_places(memory)
        return self._embed(x), self._embed(y)

    def every_cell(self, cells: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
            layer.weight.copy_(factor * torch.eye(self.width))  # type: ignore[operator, union-attr]
            layer.bias.fill_(shift)  # type: ignore[operator, union-attr]

    def _embed(self, values: Tensor) -> Tensor:
        return self.perceptron(sine_embedding(values.unsqueeze(-1) * (2 * math.pi), self.width, self.temperature))


class PlaneEmbedding(nn.Module):
    """Places through one sine embedding of both coordinates, row first, and a perceptron of two layers [P].

    Methods as in :class:`AxisEmbedding`, with one embedding each.

    Args:
        width: C. temperature: of the sine embedding.
    """

    def __init__(self, width: int, temperature: float):
        super().__init__()
        self.width, self.temperature = width, temperature
        self.perceptron = PerceptronHead(width, width, width, num_layers=2)

    def points(self, points: Tensor) -> tuple[Tensor, ...]:
        """(B, Q, 2) to (B, Q, C)."""
        return (self.perceptron(point_positions(points, self.width, self.temperature)),)

    def cells(self, memory: Memory) -> tuple[Tensor, ...]:
        """The embedding of every cell (B, S, C)."""
        x, y = cell_places(memory)
        shape = (-1, y.shape[1], x.shape[1])
        places = torch.stack([x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)], dim=-1)
        return self.points(places.flatten(1, 2))

    def every_cell(self, cells: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
        for child in self.children():
            nn.init.zeros_(child.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def align(self) -> None:
        """Starts the projections of queries and keys as one permutation, so that attention starts at the query's place.

        Sine-cosine pairs are dealt to the heads in turn: each sees coarse and fine ones [R].
        """
        width = self.value_projection.in_features
        pairs = torch.arange(width).view(-1, 2)
        dealt = torch.cat([pairs[head :: self.num_heads].flatten() for head in range(self.num_heads)])
        for projection in (self.query_x, self.query_y, self.key_x, self.key_y):
            projection.weight.copy_(torch.eye(width)[dealt])

    def forward(
        self,
        query: Tensor,
        places: tuple[Tensor, ...],
        tokens: Tensor,
        cells: tuple[Tensor, ...],
        memory: Memory,
        capture: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from queries to the cells of one level.

        Args:
            query: (B, Q, C). places: embeddings of the queries' x and y, (B, Q, C) each. tokens: (B, S, C).
            cells: embeddings of columns (B, X, C) and rows (B, Y, C). memory: shape and mask; its tokens are not read.
            capture: return the map.

        Returns:
            (B, Q, C), and the map before dropout (B, H, Q, S) in float32 or None.
        """
        visible = _visible(memory, tokens.device)
        grid, weight = tokens.unflatten(1, memory.shapes[0]), visible.unsqueeze(-1).to(tokens.dtype)
        columns, rows = ((grid * weight).sum(axis) / weight.sum(axis).clamp(min=1) for axis in (1, 2))
        map_x = self._map(self.query_x(query + places[0]), self.key_x(columns + cells[0]), ~visible[:, 0])
        map_y = self._map(self.query_y(query + places[1]), self.key_y(rows + cells[1]), ~visible[:, :, 0])
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
        if map_x.shape[-1] > map_y.shape[-1]:
            rows = torch.einsum("bhqx,bhyxc->bhqyc", map_x, values)
            return torch.einsum("bhqy,bhqyc->bhqc", map_y, rows)
        columns = torch.einsum("bhqy,bhyxc->bhqxc", map_y, values)
        return torch.einsum("bhqx,bhqxc->bhqc", map_x, columns)


class PlaneAttention(MultiHeadAttention):
    """Standard attention with the interface of :class:`RowColumnAttention`; one embedding of both coordinates."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        places: tuple[Tensor, ...],
        tokens: Tensor,
        cells: tuple[Tensor, ...],
        memory: Memory,
        capture: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :class:`RowColumnAttention`."""
        return super().forward(query + places[0], tokens + cells[0], tokens, mask=memory.key_mask, capture=capture)


_KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "row_column": (RowColumnAttention, AxisEmbedding),
    "standard": (PlaneAttention, PlaneEmbedding),
}


def attention_kind(name: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """The attention class and the embedding class of a value of ``MODEL.DETR.ANCHOR.ATTENTION``; else ConfigError."""
    if name not in _KINDS:
        raise ConfigError(f"MODEL.DETR.ANCHOR.ATTENTION is '{name}'. Known: {', '.join(sorted(_KINDS))}.")
    return _KINDS[name]
