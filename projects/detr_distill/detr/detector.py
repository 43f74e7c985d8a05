"""DETR-type detectors: start, finish, then losses or detections.

Letters: B images, L decoder layers, Q queries, C width, S memory tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config.keys import check_keys
from ..structures import DecoderOutput, GroundTruth, ImageBatch, Memory, QueryGroup
from ..structures.transfer import copy_to
from .backbones.build import padding_multiple
from .build import build_parts
from .checks import check_parts, check_training_groups
from .decoders.base import Decoder
from .encoders.base import Encoder
from .groups import decode_groups
from .necks.base import Neck
from .preprocess import pad_images
from .queries.base import Queries
from .supervision.criterion import SetCriterion, Supervised
from .supervision.matchings import Matchings
from .two_halves import TwoHalvesDetector


@dataclass
class Started:
    """A batch, half way through a detector.

    Attributes:
        images: preprocessed. memory: of the neck, not encoded yet.
    """

    images: ImageBatch
    memory: Memory


@dataclass
class Finished:
    """A batch, all the way through a detector.

    Attributes:
        memory: the encoder's output. groups: the detector's own queries first, then all others that were decoded.
        outputs: of the groups, by name.
    """

    memory: Memory
    groups: list[QueryGroup]
    outputs: dict[str, DecoderOutput]


@META_ARCH_REGISTRY.register()
class DetrDetector(TwoHalvesDetector):
    """A detector whose neck, encoder, decoder and queries are plug-ins.

    Its losses are ``loss_{class,box,giou}[_layer]``, with two-stage queries ``loss_*_encoder`` too, with training
    groups ``loss_*_<group>[_layer]``.

    Args:
        backbone: detectron2 backbone. neck: its parameters are called ``input_projection``. criterion: the detection
            loss. training_groups: by name, query groups that are decoded in training beside the detector's own.
        pixel_mean, pixel_std: in the order of ``input_format`` ("BGR" or "RGB", kept for visualisation).
        size_divisibility: images are padded to a multiple of it, in pixels.
        detections_per_image: most boxes returned for an image.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: Neck,
        encoder: Encoder,
        decoder: Decoder,
        queries: Queries,
        criterion: SetCriterion,
        training_groups: dict[str, nn.Module] | None = None,
        pixel_mean: list[float],
        pixel_std: list[float],
        input_format: str = "RGB",
        size_divisibility: int = 1,
        detections_per_image: int = 100,
    ):
        super().__init__()
        check_parts(neck, encoder, decoder, queries)
        check_training_groups(training_groups or {}, queries)
        self.backbone = backbone
        self.input_projection = neck
        self.encoder = encoder
        self.decoder = decoder
        self.queries = queries
        self.criterion = criterion
        self.training_groups = nn.ModuleDict(training_groups or {})
        self.input_format = input_format
        self.size_divisibility = size_divisibility
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_keys(cfg, "MODEL.DETR")
        parts = build_parts(cfg)
        return {
            **parts,
            "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": list(cfg.MODEL.PIXEL_STD),
            "input_format": cfg.INPUT.FORMAT,
            "size_divisibility": padding_multiple(cfg.MODEL.DETR.SIZE_DIVISIBILITY, parts["backbone"]),
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def start(self, batched_inputs: list[dict]) -> Started:
        """Up to the neck: the maps that the rest of the network reads."""
        return self.start_prepared(self.preprocess(batched_inputs))

    def start_prepared(self, images: ImageBatch) -> Started:
        """:meth:`start` of images that are normalised and padded already."""
        return Started(images, self.input_projection(self.backbone(images.tensor), images))

    def finish(
        self,
        started: Started,
        ground_truth: GroundTruth | None = None,
        extra: Iterable[QueryGroup] = (),
        capture: frozenset[str] = frozenset(),
    ) -> Finished:
        """From the neck to the outputs of all query groups, in one decoder pass.

        Args:
            started: of :meth:`start`. ground_truth: of a training step, which adds the training groups.
            extra: query groups to decode beside. capture: which attention to keep, see structures/.
        """
        memory = dataclasses.replace(started.memory, tokens=self.encoder(started.memory))
        groups = [*self.query_groups(memory, ground_truth), *extra]
        return Finished(memory, groups, self.decode(memory, groups, capture))

    def preprocess(self, batched_inputs: list[dict]) -> ImageBatch:
        """Normalises and pads the images of a batch."""
        images = [copy_to(entry["image"], self.device) for entry in batched_inputs]
        extents = [entry["extent"] for entry in batched_inputs if "extent" in entry]  # of a FixedBatch
        known = torch.stack(extents) if extents else None
        return pad_images(images, self.pixel_mean, self.pixel_std, self.size_divisibility, known)

    def query_groups(self, memory: Memory, ground_truth: GroundTruth | None = None) -> list[QueryGroup]:
        """The detector's own queries and, given the ground truth of a training step, its training groups.

        A training group called ``own`` takes the place of the detector's own: so is its loss weighted anew.
        """
        groups = {"own": self.queries(memory)}
        if ground_truth is not None:
            for make_groups in self.training_groups.values():
                groups.update({group.name: group for group in make_groups(memory, groups["own"], ground_truth)})
        return list(groups.values())

    def decode(
        self, memory: Memory, groups: list[QueryGroup], capture: frozenset[str] = frozenset()
    ) -> dict[str, DecoderOutput]:
        """All query groups in one decoder pass: {group name: output}."""
        return decode_groups(self.decoder, memory, groups, capture)

    def supervise(self, finished: Finished, ground_truth: GroundTruth, matchings: Matchings) -> list[Supervised]:
        """What the criterion compares with objects, each entry's matching added to the ledger where it has one.

        These are the groups with a loss weight and, with two-stage queries, the encoder's detections, which weigh what
        their group weighs. Where the queries say so (``binary_proposals``) every object is of class 0 for these: they
        tell objects from background.
        """
        supervised = [group for group in finished.groups if group.loss_weight]
        entries = [(finished.outputs[group.name], group, group.targets or ground_truth) for group in supervised]
        if self.queries.binary_proposals:
            ground_truth = dataclasses.replace(ground_truth, labels=torch.zeros_like(ground_truth.labels))
        for group in supervised:
            if group.proposals is not None:
                name = "encoder" if group.name == "own" else f"encoder_{group.name}"
                memory = finished.memory
                chosen = QueryGroup(name, memory.tokens, memory.position, loss_weight=group.loss_weight)
                entries.append((group.proposals, chosen, ground_truth))
        return self.criterion.match([Supervised(*entry) for entry in entries], matchings)
