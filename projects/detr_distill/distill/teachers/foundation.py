"""A teacher that is no detector: a network trained on a large collection of images, of which only the maps are used.

Letters: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...config.files import find_file
from ...config.keys import key
from ...config.ranges import POSITIVE
from ...detr.backbones import TimmBackbone
from ...detr.backbones.stages import DOWNLOAD
from ...errors import CheckpointError, ConfigError
from ...hugging_face.images import prepare_images
from ...registry import TEACHER_REGISTRY
from ..knowledge import Knowledge
from ..side import MAPS
from ..students.base import Student, StudentStep
from .base import WEIGHTS
from .frozen import HiddenDetector

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"
MAP = "foundation"


@TEACHER_REGISTRY.register()
class FoundationModel(HiddenDetector):
    """A frozen network of timm, such as a DINOv3 ViT, which sees the student's images at a resolution of its own.

    It gives one map, called ``foundation``.

    Source: RT-DETRv4 (2510.25257): one minus the cosine between the encoder's coarsest map, projected, and a frozen
    ViT's, its weight steered by the gradient's share [P]; here ``FeatureLoss`` with ``DIVERGENCE cosine`` and
    ``BALANCE``, which steers by the loss's share [R].

    Args:
        detector: the network, a :class:`TimmBackbone`. mean, std: of RGB pixels in the range 0 to 255.
        flip_channels: the student's images are BGR.
    """

    mean: Tensor
    std: Tensor
    detector: Any
    weights: str = WEIGHTS

    network: str = key(
        "vit_base_patch16_dinov3.lvd1689m", "timm's name of the network, with or without the tag of its weights"
    )
    out_feature: str = key(
        "last",
        "the block or stage whose map is given, such as `stage8`, a ViT's eighth block; `last` is the last, normalised "
        "as the network does it",
    )
    scale: float = key(
        1.0, "size of the images that it sees, in parts of the student's; rounded to whole patches", POSITIVE
    )

    @configurable
    def __init__(self, *, mean: list[float], std: list[float], **arguments: Any):
        super().__init__(classes=None, **arguments)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        weights = cfg.MODEL.DISTILL.TEACHER.WEIGHTS
        if not weights:
            raise ConfigError(
                f"{KEY} is empty; FoundationModel takes the weights of {cfg.MODEL.DISTILL.FOUNDATION_MODEL.NETWORK} as "
                f'timm or its authors store them. Name the file, or set it to "{DOWNLOAD}".'
            )
        if weights != DOWNLOAD:
            find_file(weights, KEY)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        cls.check_files(cfg)
        settings = cls.read_keys(cfg)
        network = _build(settings["network"], settings["out_feature"], cfg.MODEL.DISTILL.TEACHER.WEIGHTS)
        seen: Any = network.network.pretrained_cfg
        return {
            **settings,
            "detector": network.to(cfg.MODEL.DEVICE),
            "mean": [255 * value for value in seen["mean"]],
            "std": [255 * value for value in seen["std"]],
            "flip_channels": cfg.INPUT.FORMAT == "BGR",
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({MAPS})

    @property
    def name(self) -> str:
        return self.network

    @property
    def feature_channels(self) -> Mapping[str, int]:
        (spec,) = self.detector.output_shape().values()
        return {MAP: spec.channels}

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """One map (B, C, height, width) that covers what the student's maps cover, padding included."""
        images = prepare_images(step.batched_inputs, self.mean, self.std, None, self.flip_channels).tensor
        height, width = (max(pair) for pair in zip(step.image_size, images.shape[-2:], strict=True))
        images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        size = self.view(height), self.view(width)
        if size != (height, width):
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        (values,) = self.detector(images).values()
        return Knowledge(features={MAP: values})

    def view(self, pixels: int) -> int:
        """The number of its pixels for so many of the student's: whole patches, one at least."""
        patch = self.detector.size_divisibility
        return max(1, round(pixels * self.scale / patch)) * patch


def _build(name: str, out_feature: str, weights: str) -> TimmBackbone:
    """The network with its weights.

    Raises:
        ConfigError, CheckpointError: as :class:`TimmBackbone`, with this teacher's keys beside it.
    """
    try:
        return TimmBackbone(name=name, out_features=(out_feature,), pretrained=weights, last_norm=out_feature == "last")
    except (CheckpointError, ConfigError) as error:
        raise type(error)(
            "MODEL.DISTILL.FOUNDATION_MODEL.NETWORK, its OUT_FEATURE and MODEL.DISTILL.TEACHER.WEIGHTS stand for NAME, "
            f"OUT_FEATURES and PRETRAINED of MODEL.TIMM: {error}"
        ) from error
