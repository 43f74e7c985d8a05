"""A teacher that is made from the labels and from the student's own maps, and is trained with the student.

Letters: B images, N labels an image, C channels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ....config.keys import key
from ....config.ranges import COUNT, LAYERS_OR_NONE, ODD, PROPER_SHARE, WHOLE, Words
from ....errors import ConfigError
from ....iteration import needed_iteration
from ....registry import TEACHER_REGISTRY
from ....structures.regions import BoxRegions
from ...knowledge import Knowledge, SecondRun
from ...side import MAPS
from ...students.base import Student, StudentStep
from ..base import Teacher
from .descriptor import LabelDescriptor, Labels
from .points import OUTPUT_WIDTH, NormalisedLinear, PointEncoder
from .regions import MaskRegions, find_regions, write_through

logger = logging.getLogger(__name__)


MANY_CLASSES = 256


@TEACHER_REGISTRY.register()
class LabelEncoder(Teacher):
    """Labels and appearances become maps like the student's, on which the student's own head detects.

    The labels are embedded (:class:`PointEncoder`), each object's appearance is read from the student's maps, attention
    relates the two within an image, and what comes out is written back to the objects' positions and refined. One
    set of weights serves all levels. Source: LGD (2109.11496) [C]; SSSD (2303.05015) keeps it. No gradient of the
    distillation loss enters it: it learns from the detection loss of the student's head on its maps. Args:
    channels: C. descriptor: of the labels.
    """

    needs_labels = True

    in_features: tuple[str, ...] = key(
        (),
        "`LabelEncoder`: the student's maps that are encoded (`p3`, ...; `level0`, ... of a DETR); empty: all that its "
        "head reads",
    )
    context: bool = key(True, "a row of the whole image behind each image's objects")
    use_masks: bool = key(False, "objects are their masks instead of their boxes")
    clamp_corners: bool = key(
        False,
        "an object's corners end at the index of the image's last pixel, width - 1 and height - 1, before they are "
        "divided by width and height, as LGD's do; `False`: at the border",
    )
    class_embedding: int = key(0, "width of a learned vector for each class, for large label sets; 0: one-hot", WHOLE)
    num_heads: int = key(8, "heads of the attention between appearances and labels", COUNT)
    guide: str = key("student", 'appearances ask and labels answer; `"label"`: the reverse', Words("student", "label"))
    detach_appearance: bool = key(False, "keep the encoder's gradient from the student's maps")
    refinement_layers: int = key(3, "convolutions behind the written map", LAYERS_OR_NONE)
    refinement_kernel: int = key(3, "their size, in cells", ODD)
    head_share: float = key(
        1.0,
        "part of the batch's images, at least one, on which the student's head reads the encoder's maps; the images "
        "take turns",
        PROPER_SHARE,
    )
    head_regions: float = key(
        1.0, "part of the regions that the head of a two-stage student samples on the encoder's maps", PROPER_SHARE
    )
    head_learns: bool = key(
        True, "the student's head learns from the encoder's maps too; False: they teach the encoder alone"
    )
    appearance_kernel: int = key(3, "size of the convolution before objects are read, in cells", ODD)
    keep_label: bool = key(
        False,
        "add an object's own label embedding to what attention tells it; for short trainings (docs/methods.md)",
    )

    @configurable
    def __init__(self, *, channels: int, descriptor: LabelDescriptor, **settings: Any):
        super().__init__(**settings)
        if channels % self.num_heads:
            raise ConfigError(
                f"MODEL.DISTILL.LABEL_ENCODER.NUM_HEADS is {self.num_heads}, which does not divide the {channels} "
                "channels of the student's maps. Choose a divisor."
            )
        self.given_channels = dict.fromkeys(self.in_features, channels)
        self.descriptor = descriptor
        self.points = PointEncoder(descriptor.width)
        self.label_projection = NormalisedLinear(OUTPUT_WIDTH, channels)
        self.appearance = _same_size(channels, self.appearance_kernel)
        self.relation = nn.MultiheadAttention(channels, self.num_heads, batch_first=True)
        self.object_projection = nn.Linear(channels, channels)
        self.context_projection = nn.Linear(channels, channels) if descriptor.context else None
        self.write_convolution = _same_size(channels, 3)
        self.refinement = nn.ModuleList(
            _same_size(channels, self.refinement_kernel) for _ in range(self.refinement_layers)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        node = cfg.MODEL.DISTILL.LABEL_ENCODER
        in_features = _choose_maps(node.IN_FEATURES, student.feature_channels)
        num_classes = student.num_classes
        if num_classes > MANY_CLASSES and not node.CLASS_EMBEDDING:
            logger.warning(
                f"The label encoder reads {num_classes} classes as {num_classes} numbers, and its first transform has "
                f"{257 * (4 + num_classes) ** 2 / 1e6:.0f} M weights for them. "
                "MODEL.DISTILL.LABEL_ENCODER.CLASS_EMBEDDING 64 gives each class a learned vector instead."
            )
        return {
            **cls.read_keys(cfg),
            "in_features": in_features,
            "channels": student.feature_channels[in_features[0]],
            "descriptor": LabelDescriptor(
                num_classes, node.CONTEXT, node.CLASS_EMBEDDING, node.USE_MASKS, node.CLAMP_CORNERS
            ),
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({MAPS})

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """The teacher's maps for a training step; they have the student's names, widths and sizes."""
        assert step.ground_truth is not None
        maps = [step.features[name] for name in self.in_features]
        if self.detach_appearance:
            maps = [values.detach() for values in maps]
        labels = self.descriptor(step.ground_truth, step.image_size)
        embedding = self.label_projection(self.points(labels.rows.to(maps[0].dtype), labels.valid))
        regions = [find_regions(labels, step.image_size, (x.shape[-2], x.shape[-1])) for x in maps]
        seen = [region.read(_norm(self.appearance(x)).relu_()) for region, x in zip(regions, maps, strict=True)]
        related = self._relate(torch.stack(seen), embedding, labels)
        taught = dict(zip(self.in_features, self._render(related, regions, labels), strict=True))
        images = self._head_images(len(maps[0]), step.iteration)
        return Knowledge(
            features=taught,
            second_run=SecondRun({**step.features, **taught}, images, self.head_regions, self.head_learns),
        )

    def _head_images(self, images: int, iteration: int | None) -> slice:
        """The images whose turn it is; a last turn that is not full reads some of the one before again."""
        count = max(1, round(self.head_share * images))
        turns = math.ceil(images / count)
        if turns == 1:
            return slice(0, images)
        turn = needed_iteration(iteration, "MODEL.DISTILL.LABEL_ENCODER.HEAD_SHARE") % turns
        start = min(turn * count, images - count)
        return slice(start, start + count)

    def _relate(self, appearance: Tensor, embedding: Tensor, labels: Labels) -> Tensor:
        """Appearances (levels, B, N, C) and embeddings (B, N, C) to (levels, B, N, C)."""
        levels = len(appearance)
        hidden = ~labels.valid
        # An image without labels looks at a padded row, whose answer is written nowhere: softmax wants one.
        hidden[:, 0] = False
        appearance = appearance.flatten(0, 1)
        embedding, hidden = embedding.repeat(levels, 1, 1), hidden.repeat(levels, 1)
        asking, answering = (appearance, embedding) if self.guide == "student" else (embedding, appearance)
        related, _ = self.relation(asking, answering, answering, key_padding_mask=hidden, need_weights=False)
        if self.keep_label:
            related = related + embedding
        return related.unflatten(0, (levels, -1))

    def _render(self, related: Tensor, regions: list[BoxRegions | MaskRegions], labels: Labels) -> list[Tensor]:
        """Objects (levels, B, N, C) to a refined map (B, C, height, width) of each level."""
        context = labels.is_context.unsqueeze(-1)
        objects = self.object_projection(related).masked_fill(context, 0)
        maps = write_through(objects, regions, self.write_convolution)
        if self.context_projection is not None:
            whole = self.context_projection((related * context).sum(2))[..., None, None]
            maps = [values + background for values, background in zip(maps, whole, strict=True)]
        return [self._refine(values.relu()) for values in maps]

    def _refine(self, values: Tensor) -> Tensor:
        for index, convolution in enumerate(self.refinement):
            values = _norm(convolution(values.relu_() if index else values))
        return values


def _choose_maps(wanted: Sequence[str], channels: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the maps that are encoded, all of one width; all that there are where none is wanted.

    Raises:
        ConfigError: a map that the student's head does not read, one named twice, or widths that differ.
    """
    names = tuple(wanted) or tuple(channels)
    unknown = [name for name in names if name not in channels]
    if unknown:
        raise ConfigError(
            f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES names {unknown}; the student's head reads {list(channels)}."
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES is {list(names)}. Name each map once.")
    if len({channels[name] for name in names}) > 1:
        raise ConfigError(
            f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES: the maps have {dict(channels)} channels; one encoder serves "
            "maps of one width. Name maps of equal width."
        )
    return names


def _same_size(channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2)


def _norm(values: Tensor) -> Tensor:
    """Group normalisation with one group and no parameters; a single cell has its channels to normalise over."""
    return F.group_norm(values, 1)
