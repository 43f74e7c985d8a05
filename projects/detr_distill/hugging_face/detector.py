"""A detector of transformers with this project's criterion: trained plainly, distilled and evaluated like any other.

Letters: B images, L decoder layers, Q queries, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config.keys import check_keys
from ..detr.boxes import EPSILON
from ..detr.supervision.criterion import SetCriterion, Supervised
from ..detr.supervision.matchings import Matchings
from ..detr.training_groups.denoising import ContrastiveDenoisingQueries
from ..detr.two_halves import TwoHalvesDetector
from ..structures import GroundTruth, QueryGroup
from .build import build_parts
from .distribution import DistributionLoss
from .halves import Decoded, Halfway, Network
from .images import prepare_images


@META_ARCH_REGISTRY.register()
class TransformersStudent(TwoHalvesDetector):
    """A model of transformers, as it is, with the losses of this project.

    Assignments of all layers and groups are solved together, so that a step reads the device once where the library's
    own loss reads it for every layer; the weights of losses and costs are the keys of ``MODEL.DETR.LOSS`` and
    ``MODEL.DETR.MATCHER``. A model that has denoising queries trains with them; their padding has no loss, as in DINO.

    Its losses are ``loss_{class,box,giou}[_group][_layer]``, of the groups ``encoder`` and ``denoising`` and, with
    D-FINE, of ``first`` (the head before the first layer's), which has ``loss_{fgl,ddf}`` too.

    Args:
        network: runs the model in two halves. criterion: the detection loss. distribution: of D-FINE; None for others.
        mean, std: of RGB pixels in the range 0 to 255. size: (height, width) to which every image is stretched; None
            pads and masks them. input_format: "RGB" or "BGR", of the images that come in.
        detections_per_image: most boxes returned for an image. test_size: of images that are not stretched, the
            shortest side, and the longest at most, in pixels; an exported folder says so.
    """

    mean: Tensor
    std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: Network,
        criterion: SetCriterion,
        distribution: DistributionLoss | None = None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: tuple[int, int] | None,
        input_format: str = "RGB",
        detections_per_image: int = 100,
        test_size: tuple[int, int] = (800, 1333),
    ):
        super().__init__()
        self.network = network
        self.model = network.detector
        self.criterion = criterion
        self.distribution = distribution
        self.training_groups = nn.ModuleDict(_denoising(network, criterion.num_classes))
        self.size = size
        self.input_format = input_format
        self.detections_per_image = detections_per_image
        self.test_size = test_size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_keys(cfg, "MODEL.DETR")
        check_keys(cfg, "MODEL.TRANSFORMERS")
        return {
            **build_parts(cfg),
            "input_format": cfg.INPUT.FORMAT,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "test_size": (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        }

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def stretches(self) -> bool:
        return self.size is not None

    def start(self, batched_inputs: list[dict]) -> Halfway:
        """Up to the maps that the encoder reads."""
        flip = self.input_format == "BGR"
        return self.network.start(prepare_images(batched_inputs, self.mean, self.std, self.size, flip))

    def finish(
        self, half: Halfway, ground_truth: GroundTruth | None = None, extra: Iterable[QueryGroup] = ()
    ) -> Decoded:
        """From maps to the outputs of all query groups, in one decoder pass.

        Args:
            half: of :meth:`start`. ground_truth: of a training step, which adds denoising queries.
            extra: query groups to decode beside.
        """

        def all_groups(own: QueryGroup) -> list[QueryGroup]:
            training = [] if ground_truth is None else self.training_groups.values()
            made = [group for make_groups in training for group in make_groups(None, own, ground_truth)]
            return [own, *made, *extra]

        return self.network.finish(half, all_groups)

    def supervise(self, decoded: Decoded, ground_truth: GroundTruth, matchings: Matchings) -> list[Supervised]:
        """What the criterion compares with objects, each entry's matching added to the ledger where it has one.

        These are the groups with a loss weight, the encoder's own detections, and what a head before the first layer's
        predicts of each of these groups.
        """
        entries = []
        if decoded.binary_encoder:
            binary = dataclasses.replace(ground_truth, labels=torch.zeros_like(ground_truth.labels))
        for group in decoded.groups:
            if not group.loss_weight:
                continue
            objects = group.targets or ground_truth
            entries.append(Supervised(decoded.outputs[group.name], group, objects))
            beside = {"first": (decoded.first, objects)}
            beside["encoder"] = (decoded.encoder, binary if decoded.binary_encoder else ground_truth)
            for kind, (outputs, compared) in beside.items():
                if group.name in outputs:
                    name = kind if group.name == "own" else f"{kind}_{group.name}"
                    alone = dataclasses.replace(group, name=name, forced_cost={})
                    entries.append(Supervised(outputs[group.name], alone, compared))
        return self.criterion.match(entries, matchings)

    def losses(self, supervised: list[Supervised]) -> dict[str, Tensor]:
        """The detection losses of what :meth:`supervise` named, once the ledger is solved."""
        losses = super().losses(supervised)
        if self.distribution is not None:
            for entry in supervised:
                if entry.output.edges is not None:
                    deep = entry.output.num_layers if self.criterion.deep_supervision else 1
                    losses.update(self.distribution(entry, deep))
        return losses


def _denoising(network: Network, num_classes: int) -> dict[str, nn.Module]:
    """The model's denoising queries, made by ours: its settings, and its embedding of classes."""
    embedding, config = network.denoising_embedding, network.config
    if embedding is None:
        return {}
    with torch.random.fork_rng():
        queries = ContrastiveDenoisingQueries(
            num_classes=num_classes,
            width=embedding.embedding_dim,
            num_pairs=config.num_denoising,
            label_noise=config.label_noise_ratio,
            box_noise=config.box_noise_scale,
            logit_epsilon=EPSILON,
        )
    queries.label_embedding = embedding
    return {type(queries).__name__: queries}
