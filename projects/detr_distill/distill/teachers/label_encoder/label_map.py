"""LabelEnc (2007.03282): a teacher that sees a picture of the labels alone.

Letters: B images, N objects an image, K classes, C channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ....checkpoint.strict import load_part
from ....config.keys import key
from ....config.ranges import SEVERAL, Words
from ....errors import ConfigError
from ....registry import TEACHER_REGISTRY
from ....structures import GroundTruth
from ...knowledge import Knowledge, SecondRun
from ...side import MAPS
from ...students.base import Student, StudentStep
from ..base import Teacher
from ..configuration import check_first_training, find_weights

BLOCKS = (1, 2, 2, 1)  # of the stages of stride 4, 8, 16, 32 [C]


@TEACHER_REGISTRY.register()
class LabelMapEncoder(Teacher):
    """Encodes a K-channel picture of the boxes into maps like the student's.

    Two trainings. In the first, without ``weights``, it learns beside a student whose head detects on its maps too; in
    the second its weights are read from the first and frozen, and a fresh student learns from its maps. Source:
    LabelEnc (2007.03282) [C], where the encoder's stages feed a pyramid built like the student's.

    Args:
        strides: the student's maps, name -> stride in pixels, a power of two from 4 on, fine to coarse. channels: C.
        num_classes: K. weights: checkpoint of the first training; empty in the first.
    """

    needs_labels = True

    width: int = key(
        128,
        "`LabelMapEncoder`: channels of its stem; the last stage has sixteen times as many",
        SEVERAL,  # the narrowest inner layer has half of it
    )
    coarse_maps: str = key(
        "c5",
        'its maps coarser than stride 32, as the student has them: `"c5"` (RetinaNet), a convolution of its own last '
        'stage, and of each map behind a ReLU the next; `"p5"` (FCOS), the first from the map of stride 32; '
        '`"max_pool"` (Faster R-CNN), every second cell of the map before',
        Words("c5", "p5", "max_pool"),
    )

    @configurable
    def __init__(
        self, *, strides: Mapping[str, int], channels: int, num_classes: int, weights: str = "", **settings: Any
    ):
        super().__init__(**settings)
        self.num_classes = num_classes
        self.given_channels = dict.fromkeys(strides, channels)
        stages = {name: round(math.log2(stride)) - 2 for name, stride in strides.items()}
        self.stem = nn.Conv2d(num_classes, self.width, 7, stride=2, padding=3)
        widths = [self.width, *(2 * self.width * 2**stage for stage in range(1 + min(3, max(stages.values()))))]
        self.stages = nn.ModuleList(
            _make_stage(a, b, count) for a, b, count in zip(widths[:-1], widths[1:], BLOCKS, strict=False)
        )
        # Maps of the pyramid by the stage that they come from; coarser ones follow.
        self.inner = {name: stage for name, stage in stages.items() if stage < len(BLOCKS)}
        self.pyramid = FeaturePyramidNetwork([widths[stage + 1] for stage in self.inner.values()], channels)
        self.coarser = self._make_coarser(widths[-1], channels, len(stages) - len(self.inner))
        self.frozen = bool(weights)
        if weights:
            load_part(self, weights, "teacher.", "MODEL.DISTILL.TEACHER.WEIGHTS")
            self.requires_grad_(False)

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        check_first_training(cfg, find_weights(cfg))

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        channels, strides = student.feature_channels, student.feature_strides
        if len(strides) < len(channels) or len(set(channels.values())) > 1 or not _are_pyramid(list(strides.values())):
            raise ConfigError(
                f"MODEL.DISTILL.TEACHER.NAME is 'LabelMapEncoder', which makes a pyramid of maps of one width and of "
                f"strides 4, 8, 16, ...; {student.name} reads {dict(channels)} with strides {dict(strides)}. Use "
                "'LabelEncoder'."
            )
        return {
            **cls.read_keys(cfg),
            "strides": strides,
            "channels": next(iter(channels.values())),
            "num_classes": student.num_classes,
            "weights": find_weights(cfg) if cfg.MODEL.DISTILL.TEACHER.WEIGHTS else "",
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({MAPS})

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """The teacher's maps for a training step; they have the student's names, widths and sizes."""
        assert step.ground_truth is not None
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            taught = self._encode(self._draw(step.ground_truth.at_least_one(), step.image_size))
        if self.frozen:
            return Knowledge(features=taught)
        return Knowledge(features=taught, second_run=SecondRun({**step.features, **taught}))

    def _draw(self, ground_truth: GroundTruth, image_size: tuple[int, int]) -> Tensor:
        """(B, K, height, width): in an object's channel 1 at its centre, falling to 1/2 at its border, 0 outside [C].

        The larger value counts where objects of a class overlap. While the encoder learns, objects are dimmed at
        random, half of them not at all [C].
        """
        height, width = image_size
        boxes, valid, classes = ground_truth.corners_on_device, ground_truth.valid, ground_truth.labels
        brightness = valid.to(boxes.dtype)
        if not self.frozen:
            brightness = brightness * (2 * torch.rand_like(brightness)).clamp(max=1)
        centre, extent = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
        x, y = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) for size in (width, height))
        across = 1 - ((x - centre[..., :1]) / extent[..., :1]).abs()  # (B, N, width)
        down = 1 - ((y - centre[..., 1:]) / extent[..., 1:]).abs()
        picture = boxes.new_zeros(len(boxes), self.num_classes, height, width)
        for image in range(len(boxes)):  # N maps of a single image at a time
            values = torch.minimum(down[image, :, :, None], across[image, :, None, :])
            values = torch.where(values >= 0.5, values, 0) * brightness[image, :, None, None]
            picture[image].scatter_reduce_(0, classes[image, :, None, None].expand_as(values), values, "amax")
        return picture

    def _encode(self, picture: Tensor) -> dict[str, Tensor]:
        values, outputs = self.stem(picture), []
        for stage in self.stages:
            values = stage(values)
            outputs.append(values)
        maps = self.pyramid({name: outputs[stage] for name, stage in self.inner.items()})
        names = list(self.feature_channels)
        last = names[len(self.inner) - 1]
        values = outputs[-1] if self.coarse_maps == "c5" else maps[last]
        for index, (name, step) in enumerate(zip(names[len(self.inner) :], self.coarser, strict=True)):
            values = maps[name] = step(values.relu() if index and self.coarse_maps != "max_pool" else values)
        return {name: maps[name] for name in names}

    def _make_coarser(self, stage_width: int, channels: int, count: int) -> nn.ModuleList:
        """What halves the maps beyond stride 32, as LabelEnc's detectors do [C]."""
        if self.coarse_maps == "max_pool":
            return nn.ModuleList(nn.MaxPool2d(1, stride=2) for _ in range(count))
        widths = [stage_width if self.coarse_maps == "c5" else channels, *[channels] * count]
        return nn.ModuleList(nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in widths[:count])


class Bottleneck(nn.Module):
    """The residual block of ResNet without normalisation [C]: (B, channels, h, w) to (B, out_channels, h/s, w/s)."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        inner = out_channels // 4
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, out_channels, 1),
        )
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.layers(values) + self.shortcut(values))


def _make_stage(channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    first = Bottleneck(channels, out_channels, 2)
    return nn.Sequential(first, *(Bottleneck(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def _are_pyramid(strides: list[int]) -> bool:
    """Powers of two from 4 on, each twice the one before, one of them at most 32."""
    return bool(strides) and strides[0] in (4, 8, 16, 32) and all(b == 2 * a for a, b in itertools.pairwise(strides))
