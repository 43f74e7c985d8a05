"""From our weights to those of transformers: the import, read backwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import CheckpointError, first
from .names_transformers import rename_transformers

_COUNTER = "num_batches_tracked"  # of batch normalisation; no detection depends on it


def restore_transformers(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], family: str, refinement: bool | None
) -> dict[str, Tensor]:
    """Weights under the names, and in the form, of a detector of transformers.

    Every element of the library's tensors gets a number, the tensors of numbers are imported, and where a number comes
    out belongs the element that has it. So names, divided queries and tied heads are told by the import alone.

    Args:
        weights: under our names. state: of the library's model, of which names, shapes and shared memory count.
        family, refinement: as the import takes them.

    Raises:
        CheckpointError: the two are not of one network; names the first tensors.
    """
    numbers, total = _number_elements(state)
    places = rename_transformers(numbers, family, refinement)
    differing = sorted(name for name in {*places, *weights} if _shape(places.get(name)) != _shape(weights.get(name)))
    if differing:
        raise CheckpointError(
            f"These weights are not of the {family} that transformers builds; {len(differing)} tensors differ: "
            f"{first(differing)}."
        )
    elements = torch.full((total,), torch.nan)
    for name, place in places.items():
        elements[place.flatten()] = weights[name].flatten().to(elements)
    assert not elements.isnan().any() or any(value.isnan().any() for value in weights.values())
    return {
        name: elements[numbers[name].flatten()].view(value.shape) if name in numbers else value.clone()
        for name, value in state.items()
    }


def _number_elements(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tensors of the same shapes that number all elements, tied ones alike; and how many there are."""
    numbers: dict[str, Tensor] = {}
    known: dict[tuple[int, torch.Size], Tensor] = {}
    total = 0
    for name, value in state.items():
        if name.endswith(_COUNTER):
            continue
        memory = (value.data_ptr(), value.shape)
        if memory not in known:
            known[memory] = torch.arange(total, total + value.numel()).view(value.shape)
            total += value.numel()
        numbers[name] = known[memory]
    return numbers, total


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape
