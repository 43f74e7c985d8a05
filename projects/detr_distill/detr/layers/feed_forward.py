"""Feed-forward parts of transformers, and the dropout that they use.

Letters: B images, N tokens or queries, E width.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures.constants import is_graph, keeps_values
from . import cpu_operators
from .module_list import ModuleList

# Joined weights of frozen layers, with the state that they were joined in.
_FROZEN: weakref.WeakKeyDictionary[nn.Linear, tuple[list, Tensor, Tensor]] = weakref.WeakKeyDictionary()


def drop(values: Tensor, probability: float) -> Tensor:
    """Dropout of a large tensor as one operator."""
    if values.device.type == "cpu" and not is_graph():
        return cpu_operators.drop(values, probability)
    return F.dropout(values, probability)


class Dropout(nn.Dropout):
    """torch's module by way of :func:`drop`."""

    def forward(self, values: Tensor) -> Tensor:
        """The values, some of them dropped in training."""
        return drop(values, self.p) if self.training and self.p else values


def project_together(values: Tensor, linears: Iterable[nn.Linear]) -> tuple[Tensor, ...]:
    """What several linear layers make of the same values (..., E), in one product."""
    parts = list(linears)
    return F.linear(values, *_joined(parts)).split([part.out_features for part in parts], dim=-1)


def _joined(parts: list[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The weights and biases of linear layers as those of one; of frozen ones they are kept until these change."""
    first = parts[0]
    if first.weight.requires_grad or torch.is_inference_mode_enabled() or not keeps_values():
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    state = [(x.data_ptr(), x._version, x.dtype) for part in parts for x in (part.weight, part.bias)]
    known = _FROZEN.get(first)
    if known is None or known[0] != state:
        joined = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        known = _FROZEN[first] = (state, *joined)
    return known[1], known[2]


def linear_relu(values: Tensor, linear: nn.Linear) -> Tensor:
    """``relu(linear(values))``; as one operator where nothing is differentiated and all is of one type."""
    weight, bias = linear.weight, linear.bias
    kind = values.dtype
    if torch.is_grad_enabled() or is_graph() or not weight.dtype == kind == _autocast_type(values):
        return F.relu(linear(values))
    rows = values.reshape(-1, values.shape[-1])
    return torch._addmm_activation(bias, rows, weight.t()).view(*values.shape[:-1], -1)


def _autocast_type(values: Tensor) -> torch.dtype:
    """The type that a product of these values is computed in."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


class FeedForward(nn.Module):
    """Linear, activation (ReLU), dropout, Linear, as in the original transformer."""

    def __init__(self, width: int, inner_width: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(width, inner_width)
        self.contract = nn.Linear(inner_width, width)
        self.activation: nn.Module = nn.ReLU()
        self.dropout = dropout

    def use_learned_slope(self) -> None:
        """Gives PReLU instead of ReLU, as DAB-DETR has it (2201.12329) [C]."""
        self.activation = nn.PReLU()

    def forward(self, values: Tensor) -> Tensor:
        """(B, N, E) to (B, N, E)."""
        if isinstance(self.activation, nn.ReLU):
            hidden = linear_relu(values, self.expand)
        else:
            hidden = self.activation(self.expand(values))
        return self.contract(drop(hidden, self.dropout) if self.training and self.dropout else hidden)


class PerceptronHead(nn.Module):
    """Linear layers with ReLU between them."""

    layers: ModuleList[nn.Linear]

    def __init__(self, in_width: int, hidden_width: int, out_width: int, num_layers: int):
        super().__init__()
        widths = [in_width, *[hidden_width] * (num_layers - 1), out_width]
        self.layers = ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def clear_last(self) -> None:
        """Starts the last layer, and so the output, at zero."""
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, values: Tensor) -> Tensor:
        """(..., in_width) to (..., out_width)."""
        for layer in self.layers[:-1]:
            values = linear_relu(values, layer)
        return self.layers[-1](values)
