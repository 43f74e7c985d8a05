"""What all necks share: from backbone features to the tokens that the encoder works on.

Letters: B images, C width, S memory tokens, L levels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ...errors import ConfigError
from ...plugin import Plugin
from ...registry import NECK_REGISTRY
from ...structures import ImageBatch, Memory
from ...structures.levels import join_maps, visible_axes
from ...structures.transfer import constant
from ..keys import HIDDEN_DIM, IN_FEATURES

NORM_GROUPS = 32  # of the group normalisation behind a projection


@NECK_REGISTRY.interface
class Neck(Plugin):
    """From the backbone's feature maps to tokens.

    A subclass is built beside ``shapes``, {name: channels and stride} of the backbone's outputs.

    Attributes:
        in_features: names of the outputs that are used, fine to coarse. width: C.
        has_levels: the tokens are those of levels that can be sampled; else of one plain map.
        num_levels: L; 1 of a plain map.
    """

    section = "MODEL.DETR"
    declares = ("has_levels",)
    has_levels: ClassVar[bool]
    num_levels: int = 1

    in_features: tuple[str, ...] = IN_FEATURES
    width: int = HIDDEN_DIM

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {**cls.read_keys(cfg), "shapes": shapes}

    @abstractmethod
    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded yet."""


def resize_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """The images' padding mask (B, height, width) on a feature map of ``size`` cells: nearest pixel, as DETR does."""
    return None if mask is None else F.interpolate(mask[:, None].float(), size=size)[:, 0].bool()


def check_features(in_features: tuple[str, ...], shapes: dict[str, ShapeSpec], most: int, expected: str) -> None:
    """Raises ConfigError unless 1 to ``most`` outputs of the backbone are named; ``expected`` says so in words."""
    if not 1 <= len(in_features) <= most or not set(in_features) <= set(shapes):
        raise ConfigError(
            f"MODEL.DETR.IN_FEATURES is {list(in_features)}; this neck takes {expected} of {sorted(shapes)}. "
            "Name those to use, fine to coarse; the backbone's outputs are set by OUT_FEATURES of its own node "
            "(MODEL.RESNETS, MODEL.TIMM or MODEL.TORCHVISION)."
        )


def projection(channels: int, width: int, kernel_size: int) -> nn.Conv2d:
    """1x1, or 3x3 of stride 2, with Xavier weights and zero bias as published."""
    convolution = nn.Conv2d(channels, width, kernel_size, stride=2 if kernel_size == 3 else 1, padding=kernel_size // 2)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def join_levels(maps: list[Tensor], masks: list[Tensor | None], position: Tensor) -> Memory:
    """Maps (B, C, height, width) and their padding masks as the tokens of one memory, which knows its levels."""
    sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
    hidden = [mask.flatten(1) for mask in masks if mask is not None]
    tokens = join_maps(maps)
    return Memory(
        tokens,
        position.expand(-1, tokens.shape[1], tokens.shape[2]),
        torch.cat(hidden, dim=1) if hidden else None,
        sizes,
        level_sizes=constant(tuple((width, height) for height, width in sizes), tokens.device),
        valid_ratios=torch.stack([_valid_ratio(mask, tokens.device) for mask in masks], dim=1),
    )


def check_width(width: int, neck: str) -> None:
    """Raises ConfigError where the groups of the normalisation do not divide the width."""
    if width % NORM_GROUPS:
        raise ConfigError(
            f"MODEL.DETR.HIDDEN_DIM is {width}; {neck} normalises {NORM_GROUPS} groups of channels. "
            f"Choose a multiple of {NORM_GROUPS}."
        )


def _valid_ratio(mask: Tensor | None, device: torch.device) -> Tensor:
    """(B, 2): how much of a level's width and height is image; B = 1 without mask."""
    if mask is None:
        return torch.ones(1, 2, device=device)
    return torch.stack([axis.mean(1) for axis in visible_axes((~mask).float())], dim=-1)
