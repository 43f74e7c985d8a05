"""From backbone features to the tokens that the encoder works on: one level as in DETR, or several.

Letters: B images, C width, S memory tokens, L levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import NECK_REGISTRY
from ..structures import ImageBatch, Memory
from .position import image_positions

GROUPS = 32  # of the group normalisation in MultiLevelNeck


def resize_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """The images' padding mask (B, height, width) on a feature map of ``size`` cells: nearest pixel, as DETR does."""
    return None if mask is None else F.interpolate(mask[:, None].float(), size=size)[:, 0].bool()


def _check_features(in_features: list[str], shapes: dict[str, ShapeSpec], most: int, expected: str) -> None:
    if not 1 <= len(in_features) <= most or not set(in_features) <= set(shapes):
        raise ConfigError(
            f"MODEL.DETR.IN_FEATURES is {list(in_features)}; this neck takes {expected} of {sorted(shapes)}. "
            "Name those to use, fine to coarse; the backbone's outputs are set by OUT_FEATURES of its own node "
            "(MODEL.RESNETS, MODEL.TIMM or MODEL.TORCHVISION)."
        )


@NECK_REGISTRY.register()
class SingleLevelNeck(nn.Conv2d):
    """One feature map through a 1x1 convolution, as in DETR (2005.12872) [P].

    It *is* the convolution, so that its parameters are called ``input_projection.weight`` and ``.bias`` in a detector.

    Args:
        shapes: channels of the backbone's outputs. in_features: the name of one of them. width: C.
        temperature: of the sine position embedding.

    Attributes:
        num_levels: levels that deformable attention can sample; 0: their extent is not computed.
    """

    num_levels = 0

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], in_features: list[str], width: int, temperature: float):
        _check_features(in_features, shapes, 1, "one")
        super().__init__(shapes[in_features[0]].channels, width, kernel_size=1)
        self.in_feature = in_features[0]
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        return neck_arguments(cfg, shapes)

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:  # type: ignore[override]
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded yet."""
        projected = super().forward(features[self.in_feature])
        size = (projected.shape[-2], projected.shape[-1])
        mask = resize_mask(images.mask, size)
        position = image_positions(size, mask, self.out_channels, projected.device, self.temperature)
        flat_mask = None if mask is None else mask.flatten(1)
        return Memory(projected.flatten(2).transpose(1, 2), position.to(projected.dtype), flat_mask, [size])


@NECK_REGISTRY.register()
class MultiLevelNeck(nn.Module):
    """Several feature maps, each through a convolution and group normalisation, with a learned vector a level.

    A backbone feature has a 1x1 convolution; each further level halves the one before with a 3x3 convolution of stride
    2, the first of them from the backbone's last feature. Positions are those of cell centres. Source: Deformable
    DETR (2010.04159) [P]; centres [C], which DINO's code does without.

    Args:
        shapes: channels of the backbone's outputs. in_features: names of those used, fine to coarse. width: C.
        num_levels: L, at least as many as features. temperature: of the sine position embedding. offset: added to the
            cells' numbers, which count from 1: -0.5 is a cell's centre.
    """

    @configurable
    def __init__(
        self,
        *,
        shapes: dict[str, ShapeSpec],
        in_features: list[str],
        width: int,
        temperature: float,
        num_levels: int,
        offset: float = -0.5,
    ):
        super().__init__()
        _check_features(in_features, shapes, num_levels, f"1 to MODEL.DETR.NUM_LEVELS = {num_levels}")
        _check_width(width, "MultiLevelNeck")
        self.in_features, self.num_levels, self.width = in_features, num_levels, width
        self.temperature, self.offset = temperature, offset
        channels = [shapes[name].channels for name in in_features]
        self.projections = nn.ModuleList(_project(count, width, 1) for count in channels)
        for level in range(len(channels), num_levels):
            self.projections.append(_project(channels[-1] if level == len(channels) else width, width, 3))
        self.level_embedding = nn.Parameter(torch.randn(num_levels, width))

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        node = cfg.MODEL.DETR
        return {**neck_arguments(cfg, shapes), "num_levels": node.NUM_LEVELS, "offset": node.NECK.POSITION_OFFSET}

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded yet, with levels."""
        maps = self._maps(features)
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        masks = [resize_mask(images.mask, size) for size in sizes]
        positions = [
            image_positions(size, mask, self.width, x.device, self.temperature, self.offset) + embedding
            for x, size, mask, embedding in zip(maps, sizes, masks, self.level_embedding, strict=True)
        ]
        return _join_levels(maps, masks, torch.cat(positions, dim=1).to(maps[0].dtype))

    def _maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        """L maps (B, C, height, width)."""
        inputs = [features[name] for name in self.in_features]
        maps = [project(x) for project, x in zip(self.projections, inputs, strict=False)]
        for level in range(len(inputs), self.num_levels):
            maps.append(self.projections[level](inputs[-1] if level == len(inputs) else maps[-1]))
        return maps


@NECK_REGISTRY.register()
class AdaMixerNeck(nn.Module):
    """Several feature maps, each through a 1x1 convolution, and one group normalisation for all of them.

    Positions are zero: there is no encoder to read them. Source: AdaMixer (2203.16507) [P]; norm [C].

    Args:
        shapes: channels of the backbone's outputs. in_features: names of those used, fine to coarse. width: C.

    Attributes:
        num_levels: one a feature.
    """

    @configurable
    def __init__(self, *, shapes: dict[str, ShapeSpec], in_features: list[str], width: int):
        super().__init__()
        _check_features(in_features, shapes, len(shapes), "one or more")
        _check_width(width, "AdaMixerNeck")
        strides = [shapes[name].stride for name in in_features]
        if any(2 * fine != coarse for fine, coarse in zip(strides[:-1], strides[1:], strict=True)):  # type: ignore[operator]
            raise ConfigError(
                f"MODEL.DETR.IN_FEATURES is {list(in_features)}, of strides {strides}; AdaMixer wants each level at "
                "twice the stride of the one before. Name neighbouring features, fine to coarse."
            )
        self.in_features, self.num_levels = in_features, len(in_features)
        channels = [shapes[name].channels for name in in_features]
        self.projections = nn.ModuleList(_convolution(count, width, 1) for count in channels)
        self.norm = nn.GroupNorm(GROUPS, width)

    @classmethod
    def from_config(cls, cfg, shapes: dict[str, ShapeSpec]):
        arguments = neck_arguments(cfg, shapes)
        return {name: arguments[name] for name in ("shapes", "in_features", "width")}

    def forward(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to memory that is not encoded."""
        inputs = (features[name] for name in self.in_features)
        maps = [self.norm(project(x)) for project, x in zip(self.projections, inputs, strict=True)]
        masks = [resize_mask(images.mask, (x.shape[-2], x.shape[-1])) for x in maps]
        return _join_levels(maps, masks, maps[0].new_zeros(1, 1, 1))


def neck_arguments(cfg, shapes: dict[str, ShapeSpec]) -> dict:
    """Constructor arguments that every neck takes from the configuration."""
    node = cfg.MODEL.DETR
    return {
        "shapes": shapes,
        "in_features": list(node.IN_FEATURES),
        "width": node.HIDDEN_DIM,
        "temperature": node.POSITION_TEMPERATURE,
    }


def _project(channels: int, width: int, kernel_size: int) -> nn.Sequential:
    """1x1, or 3x3 of stride 2, with Xavier weights and zero bias as published."""
    return nn.Sequential(_convolution(channels, width, kernel_size), nn.GroupNorm(GROUPS, width))


def _convolution(channels: int, width: int, kernel_size: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, kernel_size, stride=2 if kernel_size == 3 else 1, padding=kernel_size // 2)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _join_levels(maps: list[Tensor], masks: list[Tensor | None], position: Tensor) -> Memory:
    """Maps (B, C, height, width) and their padding masks as the tokens of one memory, which knows its levels."""
    sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
    visible = [mask.flatten(1) for mask in masks if mask is not None]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    return Memory(
        tokens,
        position.expand(-1, tokens.shape[1], tokens.shape[2]),
        torch.cat(visible, dim=1) if visible else None,
        sizes,
        level_sizes=torch.tensor([(width, height) for height, width in sizes], device=tokens.device).float(),
        valid_ratios=torch.stack([_valid_ratio(mask, tokens.device) for mask in masks], dim=1),
    )


def _check_width(width: int, neck: str) -> None:
    if width % GROUPS:
        raise ConfigError(
            f"MODEL.DETR.HIDDEN_DIM is {width}; {neck} normalises {GROUPS} groups of channels. "
            f"Choose a multiple of {GROUPS}."
        )


def _valid_ratio(mask: Tensor | None, device: torch.device) -> Tensor:
    """(B, 2): how much of a level's width and height is image, read on the first row and column; B = 1 without mask."""
    if mask is None:
        return torch.ones(1, 2, device=device)
    visible = (~mask).float()
    return torch.stack([visible[:, 0, :].mean(1), visible[:, :, 0].mean(1)], dim=-1)
