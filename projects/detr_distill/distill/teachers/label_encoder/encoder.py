"""A teacher that is made from the labels and from the student's own maps, and is trained with the student.

Letters: B images, N labels an image, C channels.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ....config.defaults import count_classes
from ....errors import ConfigError
from ....iteration import current_iteration
from ....registry import TEACHER_REGISTRY
from ....structures.regions import BoxRegions
from ...classes import ClassMap
from ...knowledge import Knowledge, SecondRun
from ...students.base import StudentStep, feature_channels
from .descriptor import LabelDescriptor, Labels
from .points import OUTPUT_WIDTH, NormalisedLinear, PointEncoder
from .regions import MaskRegions, find_regions, write_through

logger = logging.getLogger(__name__)


GUIDES = ("student", "label")


MANY_CLASSES = 256


@TEACHER_REGISTRY.register()
class LabelEncoder(nn.Module):
    """Labels and appearances become maps like the student's, on which the student's own head detects.

    The labels are embedded (:class:`PointEncoder`), each object's appearance is read from the student's maps, attention
    relates the two within an image, and what comes out is written back to the objects' places and refined. One set of
    weights serves all levels. Source: LGD (2109.11496) [C]; SSSD (2303.05015) keeps it. No gradient of the distillation
    loss enters it: it learns from the detection loss of the student's head on its maps.

    Args:
        in_features: the student's maps that are encoded; the head reads its own maps on others. channels: C.
        descriptor: of the labels. num_heads: of the attention. guide: "student": appearances ask and labels answer;
            "label": the reverse.
        detach_appearance: keep this teacher's gradient from the student's maps. refinement_layers, refinement_kernel:
            convolutions behind the written map. head_share: part of the batch's images, at least one, on which the
            student's head reads these maps; they take turns. head_regions: part of the regions that a two-stage
            head samples there. appearance_kernel: of the convolution before objects are read, cells. keep_label: add
            each object's own label embedding to what attention tells it. head_learns: False lets these maps teach
            the encoder alone and not the student's head.
    """

    classes: ClassMap | None = None
    detector: nn.Module | None = None

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        channels: int,
        descriptor: LabelDescriptor,
        num_heads: int = 8,
        guide: str = "student",
        detach_appearance: bool = False,
        refinement_layers: int = 3,
        refinement_kernel: int = 3,
        head_share: float = 1.0,
        head_regions: float = 1.0,
        appearance_kernel: int = 3,
        keep_label: bool = False,
        head_learns: bool = True,
    ):
        super().__init__()
        if guide not in GUIDES:
            raise ConfigError(f"MODEL.DISTILL.LABEL_ENCODER.GUIDE is '{guide}'. Known: {', '.join(GUIDES)}.")
        if channels % num_heads:
            raise ConfigError(
                f"MODEL.DISTILL.LABEL_ENCODER.NUM_HEADS is {num_heads}, which does not divide the {channels} channels "
                "of the student's maps. Choose a divisor."
            )
        self.in_features, self.guide, self.detach_appearance = in_features, guide, detach_appearance
        self.head_share, self.head_regions, self.head_learns = head_share, head_regions, head_learns
        self.keep_label = keep_label
        self.feature_channels = dict.fromkeys(in_features, channels)
        self.descriptor = descriptor
        self.points = PointEncoder(descriptor.width)
        self.label_projection = NormalisedLinear(OUTPUT_WIDTH, channels)
        self.appearance = nn.Conv2d(channels, channels, appearance_kernel, padding=appearance_kernel // 2)
        self.relation = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.object_projection = nn.Linear(channels, channels)
        self.context_projection = nn.Linear(channels, channels) if descriptor.context else None
        self.write_convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.refinement = nn.ModuleList(
            nn.Conv2d(channels, channels, refinement_kernel, padding=refinement_kernel // 2)
            for _ in range(refinement_layers)
        )

    @classmethod
    def from_config(cls, cfg, student):
        node = cfg.MODEL.DISTILL.LABEL_ENCODER
        channels = feature_channels(student)
        in_features = list(node.IN_FEATURES) or list(channels)
        unknown = [name for name in in_features if name not in channels]
        if unknown:
            raise ConfigError(
                f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES names {unknown}; the student's head reads {list(channels)}."
            )
        if len(set(in_features)) < len(in_features):
            raise ConfigError(f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES is {in_features}. Name each map once.")
        widths = {channels[name] for name in in_features}
        if len(widths) > 1:
            raise ConfigError(
                f"MODEL.DISTILL.LABEL_ENCODER.IN_FEATURES: the maps have {channels} channels; one encoder serves maps "
                "of one width. Name maps of equal width."
            )
        num_classes = count_classes(cfg)[1]
        if num_classes > MANY_CLASSES and not node.CLASS_EMBEDDING:
            logger.warning(
                f"The label encoder reads {num_classes} classes as {num_classes} numbers, and its first transform has "
                f"{257 * (4 + num_classes) ** 2 / 1e6:.0f} M weights for them. "
                "MODEL.DISTILL.LABEL_ENCODER.CLASS_EMBEDDING 64 gives each class a learned vector instead."
            )
        return {
            "in_features": in_features,
            "channels": widths.pop(),
            "descriptor": LabelDescriptor(num_classes, node.CONTEXT, node.CLASS_EMBEDDING, node.USE_MASKS),
            "num_heads": node.NUM_HEADS,
            "guide": node.GUIDE,
            "detach_appearance": node.DETACH_APPEARANCE,
            "refinement_layers": node.REFINEMENT_LAYERS,
            "refinement_kernel": node.REFINEMENT_KERNEL,
            "head_share": node.HEAD_SHARE,
            "head_regions": node.HEAD_REGIONS,
            "appearance_kernel": node.APPEARANCE_KERNEL,
            "keep_label": node.KEEP_LABEL,
            "head_learns": node.HEAD_LEARNS,
        }

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """The teacher's maps for a training step; they have the student's names, widths and sizes."""
        maps = [step.features[name] for name in self.in_features]
        if self.detach_appearance:
            maps = [values.detach() for values in maps]
        labels = self.descriptor(step, maps[0].device)
        embedding = self.label_projection(self.points(labels.rows.to(maps[0].dtype), labels.valid))
        regions = [find_regions(labels, step.image_size, (x.shape[-2], x.shape[-1])) for x in maps]
        seen = [region.read(_norm(self.appearance(x)).relu_()) for region, x in zip(regions, maps, strict=True)]
        related = self._relate(torch.stack(seen), embedding, labels)
        taught = dict(zip(self.in_features, self._render(related, regions, labels), strict=True))
        images = self._head_images(len(maps[0]))
        return Knowledge(
            features=taught,
            second_run=SecondRun({**step.features, **taught}, images, self.head_regions, self.head_learns),
        )

    def _head_images(self, images: int) -> slice:
        """The images whose turn it is; a last turn that is not full reads some of the one before again."""
        count = max(1, round(self.head_share * images))
        turns = math.ceil(images / count)
        start = min(current_iteration() % turns * count, images - count)
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


def _norm(values: Tensor) -> Tensor:
    """Group normalisation with one group and no parameters; a single cell has its channels to normalise over."""
    return F.group_norm(values, 1)
