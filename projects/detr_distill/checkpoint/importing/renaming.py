"""From a source's parameter names, and its form of some tensors, to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import CheckpointError
from ..torchvision_resnet import rename_parameter
from .family import Family
from .label_embedding import divide_label_embedding
from .rules import EVERYWHERE, TRANSFORMERS_RESNET, Rule


@dataclass(frozen=True)
class Source:
    """A project whose checkpoints can be imported.

    Attributes:
        name: key of a family's forms. rules: of its layers, the same for all families.
        backbone: the prefix under which it keeps a ResNet.
    """

    name: str
    rules: Sequence[Rule]
    backbone: re.Pattern[str]


def rename_state(
    weights: Mapping[str, Tensor], source: Source, family: Family, refinement: bool | None = None
) -> dict[str, Tensor]:
    """The state of a detector under our names and in our form.

    Args:
        refinement: whether boxes are refined from layer to layer, as far as the source tells; see ``Form.arrange``.
    """
    rules = (*source.rules, *family.rules, *EVERYWHERE)
    renamed = rename_all(split_packed(weights), rules, source.backbone)
    return divide_label_embedding(family.forms[source.name].arrange(renamed, refinement), family)


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Applies every rule in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_all(weights: Mapping[str, Tensor], rules: Sequence[Rule], backbone: re.Pattern[str]) -> dict[str, Tensor]:
    """Weights under our names; counters of batch normalisation are left out, tied copies are joined.

    Raises:
        CheckpointError: two different tensors come to the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        place = backbone.match(name)
        new = rename_backbone(name[place.end() :]) if place else rename(name, rules)
        if new in renamed and not renamed[new].equal(value):
            raise CheckpointError(
                f"{name} is one of two different tensors for {new}: the layers of this checkpoint do not share what "
                "they share here, and it cannot be imported."
            )
        renamed[new] = value
    return renamed


def rename_backbone(name: str) -> str:
    """A ResNet's parameter, without prefix, in the names of transformers, torchvision and timm, or detectron2."""
    if re.match(r"(embedder|encoder)\.", name):
        return "backbone." + rename(name, TRANSFORMERS_RESNET)
    return "backbone." + rename_parameter(name)


def split_packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divides every ``in_proj_weight`` (3C, C) and ``in_proj_bias`` (3C) into query, key and value."""
    split: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, packed, kind = name.rpartition("in_proj_")
        if not packed:
            split[name] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            split[f"{stem}{part}_proj.{kind}"] = rows
    return split
