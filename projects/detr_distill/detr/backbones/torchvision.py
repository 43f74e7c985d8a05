"""torchvision's ResNets as backbones, under torchvision's own names."""

from __future__ import annotations

import difflib
from typing import Any

import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from ...checkpoint.files import read_checkpoint
from ...checkpoint.locate import local_file
from ...config.keys import key
from ...errors import ConfigError
from .stages import DOWNLOAD, OUTPUT_STRIDES, Stage, StagedBackbone, initial_state, load_complete

KEY = "MODEL.TORCHVISION"
WEIGHTS = "IMAGENET1K_V1"  # those of DETR (2005.12872) [C]
STAGES = 4


@BACKBONE_REGISTRY.register()
class TorchvisionBackbone(StagedBackbone, node="MODEL.TORCHVISION"):
    """ResNet, ResNeXt or Wide ResNet of torchvision; ``stage<n>`` is its ``layer<n>``.

    Args:
        freeze_at: see :meth:`StagedBackbone.use`.

    Attributes:
        name: torchvision's ("resnet50"). out_features: names of the stages to return.
        output_stride: 16 or 8 dilates the last stages instead of halving them. frozen_norm: see
            :class:`StagedBackbone`.
        pretrained: a file or address of weights, "download" for torchvision's first ImageNet set, or empty.

    Raises:
        ConfigError: torchvision does not offer what is asked. CheckpointError: the weights do not fit.
    """

    name: str = key(
        "resnet50", "`TorchvisionBackbone`: torchvision's name of a ResNet, ResNeXt or Wide ResNet; freezing as above"
    )
    out_features: tuple[str, ...] = key(("stage4",), "the stages to return; `stage<n>` is `layer<n>`")
    output_stride: int = key(32, "16 (DC5) or 8, not for ResNet 18 and 34", OUTPUT_STRIDES)
    frozen_norm: bool = key(True, "batch normalisation with fixed statistics and parameters")
    pretrained: str = key(
        "",
        'weights of the classifier: a file or an address, or `"download"` for torchvision\'s first ImageNet set; not '
        "read where `MODEL.WEIGHTS` is set",
    )

    @configurable
    def __init__(self, *, freeze_at: int = 0, **settings: Any):
        super().__init__(**settings)
        stride = self.output_stride
        network = _create(self.name, stride)
        if self.pretrained:
            load_complete(network, _read_weights(self.name, self.pretrained), self.pretrained, KEY)
        expansion = 4 if isinstance(network.layer1[0], Bottleneck) else 1
        stages = [Stage(f"layer{n + 1}", (64 << n) * expansion, min(4 << n, stride)) for n in range(STAGES)]
        self.use(network, stages, freeze_at)
        for n in range(self.stage_index[-1] + 1, STAGES):
            delattr(network, f"layer{n + 1}")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**cls.read_keys(cfg), **initial_state(cfg, cls.node)}

    def run_stages(self, images: Tensor) -> list[Tensor]:
        """See the base class."""
        maps, x = [], images
        for name in ("conv1", "bn1", "relu", "maxpool"):
            x = self.network.get_submodule(name)(x)
        for index in range(self.stage_index[-1] + 1):
            x = self.network.get_submodule(f"layer{index + 1}")(x)
            if index in self.stage_index:
                maps.append(x)
        return maps


def _create(name: str, output_stride: int) -> ResNet:
    """The network with random weights and without its classifier."""
    known = torchvision.models.list_models(module=torchvision.models, include=["resne*", "wide_resnet*"])
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"{KEY}.NAME {name} is not a ResNet of torchvision. Near: {', '.join(near)}.")
    dilated = [output_stride < stride for stride in (8, 16, 32)]
    try:
        network = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=dilated)
    except NotImplementedError as error:
        raise ConfigError(
            f"{KEY}.NAME {name} has no dilated form in torchvision. Set {KEY}.OUTPUT_STRIDE to 32, or use TimmBackbone."
        ) from error
    network.fc = network.avgpool = nn.Identity()
    return network


def _read_weights(name: str, source: str) -> dict[str, Tensor]:
    if source == DOWNLOAD:
        source = torchvision.models.get_model_weights(name)[WEIGHTS].url
    return read_checkpoint(local_file(source, f"{KEY}.PRETRAINED"))["model"]
