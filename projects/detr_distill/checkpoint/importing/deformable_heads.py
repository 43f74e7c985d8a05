"""What Deformable DETR's projects keep in another form: heads of each layer, queries of two halves."""

from __future__ import annotations

import re

from torch import Tensor

HEAD = re.compile(r"^decoder\.heads\.(\d+)\.(.+)$")


def arrange_heads(weights: dict[str, Tensor], refinement: bool | None = None) -> dict[str, Tensor]:
    """Divides the learned queries, and sorts the heads: one for all layers, one a layer, and the encoder's.

    Both projects number a head for every layer, tied where boxes are not refined; two-stage networks keep the
    encoder's as one more. A file may keep a tied tensor once, under the first layer's name.

    Args:
        weights: under our names but for these.
        refinement: whether boxes are refined from layer to layer; None: they are where the layers' heads differ.
    """
    heads = {name: value for name, value in weights.items() if HEAD.match(name)}
    arranged = {name: value for name, value in weights.items() if name not in heads}
    both = arranged.get("queries.position.weight")
    if both is not None:
        arranged["queries.position.weight"], arranged["queries.content.weight"] = both.chunk(2, dim=1)
    layers = count_layers(weights, "decoder.layers.")
    refinement = _differ(heads) if refinement is None else refinement
    own_heads = refinement or "queries.output.weight" in weights
    for kind in sorted({_parse(name)[1] for name in heads}):
        first = heads.get(f"decoder.heads.0.{kind}")
        for layer in range(layers if own_heads else 1):
            value = heads.get(f"decoder.heads.{layer}.{kind}", first)
            if value is not None:
                arranged[f"decoder.heads.{layer}.{kind}"] = value
        if f"decoder.heads.{layers}.{kind}" in heads:
            arranged[f"queries.heads.{kind}"] = heads[f"decoder.heads.{layers}.{kind}"]
    return arranged


def count_layers(names, prefix: str) -> int:
    """One more than the highest number that follows a prefix."""
    numbers = [re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def _differ(heads: dict[str, Tensor]) -> bool:
    return any(not value.equal(heads.get(f"decoder.heads.0.{_parse(name)[1]}", value)) for name, value in heads.items())


def _parse(name: str) -> tuple[int, str]:
    match = HEAD.match(name)
    assert match is not None
    return int(match[1]), match[2]
