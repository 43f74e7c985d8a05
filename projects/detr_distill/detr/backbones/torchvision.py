"""torchvision's ResNets as backbones, under torchvision's own names."""

from __future__ import annotations

import difflib

import torchvision
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import ResNet

from ...checkpoint.files import read_checkpoint
from ...checkpoint.locate import local_file
from ...errors import ConfigError
from .stages import Stage, StagedBackbone, check_output_stride, load_complete

KEY = "MODEL.TORCHVISION"


DOWNLOAD = "download"


WEIGHTS = "IMAGENET1K_V1"  # those of DETR (2005.12872) [C]


STAGES = 4


@BACKBONE_REGISTRY.register()
class TorchvisionBackbone(StagedBackbone):
    """ResNet, ResNeXt or Wide ResNet of torchvision; ``stage<n>`` is its ``layer<n>``.

    Args:
        name: torchvision's ("resnet50"). out_features: names of the stages to return.
        output_stride: 16 or 8 dilates the last stages instead of halving them; 16 is DETR's "DC5" (2005.12872) [P].
        freeze_at, frozen_norm: see :class:`StagedBackbone`.
        pretrained: a file or address of weights, "download" for torchvision's first ImageNet set, or empty.

    Raises:
        ConfigError: torchvision does not offer what is asked. CheckpointError: the weights do not fit.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        out_features: list[str],
        output_stride: int = 32,
        frozen_norm: bool = True,
        freeze_at: int = 0,
        pretrained: str = "",
    ):
        network = _create(name, output_stride)
        if pretrained:
            load_complete(network, _read_weights(name, pretrained), pretrained, KEY)
        expansion: int = network.layer1[0].expansion  # type: ignore[assignment]
        super().__init__(
            network=network,
            stages=[Stage(f"layer{n + 1}", (64 << n) * expansion, min(4 << n, output_stride)) for n in range(STAGES)],
            out_features=out_features,
            freeze_at=freeze_at,
            frozen_norm=frozen_norm,
            key=KEY,
        )
        for n in range(self.stage_index[-1] + 1, STAGES):
            delattr(network, f"layer{n + 1}")

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        node = cfg.MODEL.TORCHVISION
        return {
            "name": node.NAME,
            "out_features": list(node.OUT_FEATURES),
            "output_stride": node.OUTPUT_STRIDE,
            "frozen_norm": node.FROZEN_NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            # A checkpoint of the whole detector brings the backbone's weights along.
            "pretrained": "" if cfg.MODEL.WEIGHTS else node.PRETRAINED,
        }

    def run_stages(self, images: Tensor) -> list[Tensor]:
        network, maps = self.network, []
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))  # type: ignore[operator]
        for index in range(self.stage_index[-1] + 1):
            x = getattr(network, f"layer{index + 1}")(x)
            if index in self.stage_index:
                maps.append(x)
        return maps


def _create(name: str, output_stride: int) -> ResNet:
    """The network with random weights and without its classifier."""
    known = torchvision.models.list_models(module=torchvision.models, include=["resne*", "wide_resnet*"])
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"{KEY}.NAME {name} is not a ResNet of torchvision. Near: {', '.join(near)}.")
    check_output_stride(output_stride, KEY)
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
        source = torchvision.models.get_model_weights(name)[WEIGHTS].url  # type: ignore[index]
    return read_checkpoint(local_file(source, f"{KEY}.PRETRAINED"))["model"]
