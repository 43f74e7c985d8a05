"""What backbones from libraries of image classifiers share: named stages, frozen parts, frozen batch normalisation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ...checkpoint.matching import compare
from ...config.keys import read_key
from ...config.ranges import Words
from ...errors import CheckpointError, ConfigError
from ...plugin import Plugin

OUTPUT_STRIDES = Words(32, 16, 8)  # of the last stage; 16 is DETR's "DC5" (2005.12872) [P]
DOWNLOAD = "download"  # in place of a file of weights: those of the library itself


@dataclass
class Stage:
    """One stage of a network.

    Attributes:
        module: dotted name, inside the network, of the module that ends it. channels, stride: of its feature map.
    """

    module: str
    channels: int
    stride: int


class StagedBackbone(Plugin, Backbone):
    """A classifier without its head as a detectron2 backbone; stage n, from 1, gives the feature ``stage<n>``.

    With freezing, batch normalisation as it is in DETR (2005.12872) [C]: fixed statistics and affine parameters.
    A subclass builds the network and hands it to :meth:`use`.

    Attributes:
        out_features: names of the stages to return. frozen_norm: freezes all batch normalisation.
    """

    out_features: tuple[str, ...]
    frozen_norm: bool

    def use(self, network: nn.Module, stages: list[Stage], freeze_at: int) -> None:
        """Makes a network the backbone's.

        Args:
            network: has its weights already; its modules are defined in the order in which they run.
            stages: all of the network's.
            freeze_at: 0 freezes nothing, 1 the stem, n the stem and the first n - 1 stages, as detectron2 counts: no
                gradient, and eval mode always.

        Raises:
            ConfigError: an unknown feature, or a part that cannot be frozen.
        """
        self.stage_index = _stage_index(self.out_features, len(stages), self.node)  # from 0, ascending
        self.network = freeze_norms(network) if self.frozen_norm else network
        used = [stages[index] for index in self.stage_index]
        self._out_features = [f"stage{index + 1}" for index in self.stage_index]
        self._out_feature_channels = {
            name: stage.channels for name, stage in zip(self._out_features, used, strict=True)
        }
        self._out_feature_strides = {name: stage.stride for name, stage in zip(self._out_features, used, strict=True)}
        self._divisibility = grid_multiple(network, used[-1].stride)
        self._frozen = freeze_first(network, stages, freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, height, width) to {name: (B, channels, height / stride, width / stride)}, rounded up.

        Args:
            images: normalised, and padded to ``size_divisibility``.
        """
        return dict(zip(self._out_features, self.run_stages(images), strict=True))

    @abstractmethod
    def run_stages(self, images: Tensor) -> list[Tensor]:
        """(B, channels, height, width) of each stage in ``stage_index``."""

    def train(self, mode: bool = True) -> StagedBackbone:
        """Frozen parts stay in eval mode: neither dropout nor stochastic depth, nor statistics that move."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    @property
    def size_divisibility(self) -> int:
        """Detectors pad images to a multiple of it, in pixels.

        Other sizes are refused by the network, or lose their last pixels, so that cells and padding masks disagree.
        """
        return self._divisibility


def _stage_index(out_features: tuple[str, ...], count: int, node: str) -> list[int]:
    known = [f"stage{index + 1}" for index in range(count)]
    out_features = tuple(known[-1] if name == "last" else name for name in out_features)
    if not out_features or not set(out_features) <= set(known):
        raise ConfigError(f"{node}.OUT_FEATURES is {list(out_features)}. Name one or more of {', '.join(known)}.")
    return sorted(known.index(name) for name in set(out_features))


def freeze_first(network: nn.Module, stages: list[Stage], freeze_at: int) -> list[nn.Module]:
    """Takes the gradient from the stem and the first stages.

    Returns:
        The frozen modules, which must stay in eval mode; not those that hold later stages too.
    """
    if not freeze_at:
        return []
    order = list(network.named_modules())
    last = stages[max(freeze_at - 2, 0)].module if 0 < freeze_at <= len(stages) + 1 else ""
    inside = [place for place, (name, _) in enumerate(order) if name == last or name.startswith(f"{last}.")]
    if not last or not inside:
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, which {type(network).__name__} with {len(stages)} stages does "
            f"not offer. Choose 0 (nothing), 1 (the stem) or up to {len(stages) + 1} (all), 0 where that fails too."
        )
    end = inside[0] if freeze_at == 1 else inside[-1] + 1
    for _, module in order[:end]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return [module for name, module in order[:end] if name and not last.startswith(f"{name}.")]


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Frozen batch normalisation with what timm's ``BatchNormAct2d`` does behind it (dropout and activation)."""

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm):
        super().__init__(norm.num_features, norm.eps)
        self.load_state_dict(FrozenBatchNorm2d.convert_frozen_batchnorm(norm).state_dict())
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) to the same shape."""
        x = super().forward(x)
        for child in self.children():
            x = child(x)
        return x


def freeze_norms(network: nn.Module) -> nn.Module:
    """Fixes every batch normalisation in place, and leaves other normalisation alone.

    ``FrozenBatchNorm2d.convert_frozen_batchnorm`` does it for plain layers; it would drop the activation that timm
    keeps inside its own.
    """
    for name, child in network.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)) and list(child.children()):
            network.add_module(name, FrozenBatchNormAct2d(child))
        elif isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            network.add_module(name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))
        else:
            freeze_norms(child)
    return network


def grid_multiple(network: nn.Module, coarsest: int) -> int:
    """Image sizes that no layer cuts off, in pixels: a multiple of this.

    Patch embeddings and poolings without padding or rounding up ignore the rows that do not fill a patch. Each needs
    the product of the strides up to its own; layers beside each other count as well, which pads too much at worst.

    Args:
        coarsest: stride of the coarsest feature, which is always enough.
    """
    multiple = reached = 1
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            kernel, stride, padding = (_first(value) for value in (layer.kernel_size, layer.stride, layer.padding))
            reached *= stride
            rounds_up = isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) and layer.ceil_mode
            if kernel == stride != 1 and padding in (0, "valid") and not rounds_up:
                multiple = reached
    return min(multiple, coarsest)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def initial_state(cfg: CfgNode, node: str) -> dict[str, Any]:
    """Arguments ``pretrained`` and ``freeze_at`` of a backbone that reads its own keys in ``node``."""
    # A checkpoint of the whole detector brings the backbone's weights along.
    pretrained = "" if cfg.MODEL.WEIGHTS else read_key(cfg, f"{node}.PRETRAINED")
    return {"pretrained": pretrained, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}


def load_complete(network: nn.Module, weights: Mapping[str, Tensor], source: str, node: str) -> None:
    """Loads a classifier's weights; its head may be left over, but nothing of the network may be missing.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    fit = compare(weights, network)
    if fit.missing or fit.misshaped:
        raise CheckpointError(
            f"{node}.PRETRAINED {source} does not fit {node}.NAME:\n{fit.problems()}\n"
            "Name the model that these weights belong to."
        )
    network.load_state_dict(fit.matched, strict=False)
