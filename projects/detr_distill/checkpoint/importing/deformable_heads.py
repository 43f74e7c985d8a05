"""What projects of deformable detectors keep in another form: heads of each layer, queries of two halves."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

HEAD = re.compile(r"^decoder\.heads\.(\d+)\.(.+)$")


def arrange_deformable(weights: dict[str, Tensor], refinement: bool | None) -> dict[str, Tensor]:
    """Deformable DETR: heads, and learned queries.

    Args:
        weights: under our names but for these.
        refinement: whether boxes are refined from layer to layer; None: they are where the layers' heads differ.
    """
    two_stage = "queries.output.weight" in weights
    return arrange_heads(arrange_learned_queries(weights), own_heads=True if two_stage else refinement)


def arrange_own_heads(weights: dict[str, Tensor], refinement: bool | None) -> dict[str, Tensor]:
    """Families whose layers have heads of their own, and that always refine boxes."""
    return arrange_heads(weights, own_heads=True)


def arrange_by_value(weights: dict[str, Tensor], refinement: bool | None) -> dict[str, Tensor]:
    """Families whose layers share heads or not, and that always refine boxes."""
    return arrange_heads(weights)


def arrange_learned_queries(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divides the learned queries of Deformable DETR (Q, 2C) into positions and contents."""
    both = weights.get("queries.position.weight")
    if both is None:
        return weights
    position, content = both.chunk(2, dim=1)
    return {**weights, "queries.position.weight": position, "queries.content.weight": content}


def arrange_heads(weights: dict[str, Tensor], own_heads: bool | None = None) -> dict[str, Tensor]:
    """Sorts the heads: one for all layers, one a layer, and the encoder's.

    These projects number a head for every layer, tied where the layers share one; two-stage networks keep the encoder's
    as one more. A file may keep a tied tensor once, under the first layer's name.

    Args:
        weights: under our names but for these.
        own_heads: whether every layer has heads of its own; None: they have where the heads differ.
    """
    heads = {name: value for name, value in weights.items() if HEAD.match(name)}
    arranged = {name: value for name, value in weights.items() if name not in heads}
    layers = count_layers(weights, "decoder.layers.")
    own_heads = _differ(heads, layers) if own_heads is None else own_heads
    for kind in sorted({_parse(name)[1] for name in heads}):
        first = heads.get(f"decoder.heads.0.{kind}")
        for layer in range(layers if own_heads else 1):
            value = heads.get(f"decoder.heads.{layer}.{kind}", first)
            if value is not None:
                arranged[f"decoder.heads.{layer}.{kind}"] = value
        if f"decoder.heads.{layers}.{kind}" in heads:
            arranged[f"queries.heads.{kind}"] = heads[f"decoder.heads.{layers}.{kind}"]
    return arranged


def count_layers(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows a prefix."""
    numbers = [re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def _differ(heads: dict[str, Tensor], layers: int) -> bool:
    own = {name: value for name, value in heads.items() if _parse(name)[0] < layers}
    return any(not value.equal(heads.get(f"decoder.heads.0.{_parse(name)[1]}", value)) for name, value in own.items())


def _parse(name: str) -> tuple[int, str]:
    match = HEAD.match(name)
    assert match is not None
    return int(match[1]), match[2]
