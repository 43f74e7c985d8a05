"""DETR-type detectors: preprocess, encode, decode, then losses or detections.

Letters: B images, L decoder layers, Q queries, C width, S memory tokens.
"""

from __future__ import annotations

import dataclasses

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..registry import (
    DECODER_REGISTRY,
    ENCODER_REGISTRY,
    NECK_REGISTRY,
    QUERIES_REGISTRY,
    TRAINING_GROUP_REGISTRY,
    look_up,
)
from ..structures import DecoderOutput, ImageBatch, Memory, Pairs, QueryGroup, Targets
from .backbones.build import build_backbone, padding_multiple
from .boxes import to_corners
from .checks import check_parts, check_settings, check_training_groups
from .groups import decode_groups
from .layers.deformable_kernel import choose_deformable_kernel
from .preprocess import labels_of, normalised_targets, pad_images
from .supervision.assignment import Cost, solve_assignments
from .supervision.criterion import SetCriterion


@META_ARCH_REGISTRY.register()
class DetrDetector(nn.Module):
    """A detector whose neck, encoder, decoder and queries are plug-ins.

    Args:
        backbone: detectron2 backbone. neck: see neck.py; its parameters are called ``input_projection``.
        encoder, decoder, queries: see encoder.py, decoder_*.py, queries.py. criterion: the detection loss.
        training_groups: by name, query groups that are decoded in training beside the detector's own; see
            training_groups.py.
        pixel_mean, pixel_std: in the order of ``input_format`` ("BGR" or "RGB", kept for visualisation).
        size_divisibility: images are padded to a multiple of it, in pixels.
        detections_per_image: most boxes returned for an image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        queries: nn.Module,
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
    def from_config(cls, cfg):
        check_settings(cfg)
        node = cfg.MODEL.DETR
        choose_deformable_kernel(node.DEFORMABLE_KERNEL)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "encoder": look_up(ENCODER_REGISTRY, node.ENCODER.NAME, "MODEL.DETR.ENCODER.NAME")(cfg),
            "decoder": look_up(DECODER_REGISTRY, node.DECODER.NAME, "MODEL.DETR.DECODER.NAME")(cfg),
            "queries": look_up(QUERIES_REGISTRY, node.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")(cfg),
            "criterion": SetCriterion(cfg),
            "neck": look_up(NECK_REGISTRY, node.NECK.NAME, "MODEL.DETR.NECK.NAME")(cfg, backbone.output_shape()),
            "training_groups": _build_training_groups(cfg),
            "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": list(cfg.MODEL.PIXEL_STD),
            "input_format": cfg.INPUT.FORMAT,
            "size_divisibility": padding_multiple(node.SIZE_DIVISIBILITY, backbone),
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device  # type: ignore[return-value]

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2 dicts with ``image`` (3, height, width) and, in training, ``instances``.

        Returns:
            ``loss_{class,box,giou}[_layer]`` scalars to sum, with two-stage queries ``loss_*_encoder`` too, with
            training groups ``loss_*_<group>[_layer]``; or a list of ``{"instances": Instances}`` in the pixels of the
            original images.
        """
        images = self.preprocess(batched_inputs)
        if not self.training and images.mask is not None and len(batched_inputs) > 1:
            # Convolutions carry padding over an image's border: one by one, no result depends on its neighbours.
            return [self.forward([entry])[0] for entry in batched_inputs]  # type: ignore[index, misc]
        # Before the network runs: a copy to the device waits for the work that was queued ahead of it.
        targets = self.targets(batched_inputs, images) if self.training else None
        memory = self.encode(self.backbone(images.tensor), images)
        groups = self.query_groups(memory, targets)
        outputs = self.decode(memory, groups)
        if targets is None:
            return self.detections(outputs["own"], images, batched_inputs)
        supervised = self.supervised(outputs, groups, memory, targets)
        return self.losses(supervised, solve_assignments(self.costs(supervised)))

    def preprocess(self, batched_inputs: list[dict]) -> ImageBatch:
        """Normalises and pads the images of a batch."""
        return pad_images(
            [x["image"].to(self.device, non_blocking=True) for x in batched_inputs],
            self.pixel_mean,  # type: ignore[arg-type]
            self.pixel_std,  # type: ignore[arg-type]
            self.size_divisibility,
        )

    def encode(self, features: dict[str, Tensor], images: ImageBatch) -> Memory:
        """Backbone features, {name: (B, channels, height, width)}, to what the decoder looks at."""
        memory = self.input_projection(features, images)
        return dataclasses.replace(memory, tokens=self.encoder(memory))

    def query_groups(self, memory: Memory, targets: Targets | None = None) -> list[QueryGroup]:
        """The detector's own queries and, given the ground truth of a training step, its training groups.

        A training group called ``own`` takes the place of the detector's own: so is its loss weighted anew.
        """
        groups = {"own": self.queries(memory)}
        if targets is not None:
            for make_groups in self.training_groups.values():
                groups.update({group.name: group for group in make_groups(memory, groups["own"], targets)})
        return list(groups.values())

    def decode(
        self, memory: Memory, groups: list[QueryGroup], capture: frozenset[str] = frozenset()
    ) -> dict[str, DecoderOutput]:
        """All query groups in one decoder pass: {group name: output}."""
        return decode_groups(self.decoder, memory, groups, capture)

    def targets(self, batched_inputs: list[dict], images: ImageBatch) -> Targets:
        """Ground truth of a batch, normalised by each image's own size."""
        return normalised_targets(labels_of(batched_inputs), images.sizes, self.device)

    def supervised(
        self, outputs: dict[str, DecoderOutput], groups: list[QueryGroup], memory: Memory, targets: Targets
    ) -> list[tuple[DecoderOutput, QueryGroup, Targets]]:
        """What the criterion compares with the ground truth: its first three arguments for each loss.

        These are the groups with a loss weight and, with two-stage queries, the encoder's detections, which weigh what
        their group weighs. Where the queries say so (``binary_proposals``) every object is of class 0 for these: they
        tell objects from background.

        Args:
            outputs: of ``groups``, by name. groups: the detector's own first. memory: after the queries were made.
        """
        entries = [
            (outputs[group.name], group, targets if group.targets is None else group.targets)
            for group in groups
            if group.loss_weight
        ]
        if getattr(self.queries, "binary_proposals", False):
            targets = dataclasses.replace(targets, labels=torch.zeros_like(targets.labels))
        encoders = [("encoder", groups[0], memory.proposals)]
        encoders += [(f"encoder_{group.name}", group, group.proposals) for group in groups]
        for name, group, output in encoders:
            if output is not None and group.loss_weight:
                chosen = QueryGroup(name, memory.tokens, memory.position, loss_weight=group.loss_weight)
                entries.append((output, chosen, targets))
        return entries

    def costs(self, supervised: list[tuple[DecoderOutput, QueryGroup, Targets]]) -> list[Cost]:
        """The matchings to be solved before :meth:`losses`: one for each entry whose pairs are not known."""
        return [self.criterion.cost(*entry) for entry in supervised if entry[1].pairs is None]

    def losses(
        self, supervised: list[tuple[DecoderOutput, QueryGroup, Targets]], pairs: list[Pairs]
    ) -> dict[str, Tensor]:
        """The detection losses of what :meth:`supervised` names, by the solved matchings of :meth:`costs`."""
        losses: dict[str, Tensor] = {}
        solved = iter(pairs)
        for output, group, targets in supervised:
            matched = next(solved) if group.pairs is None else group.pairs.expand_layers(output.num_layers)
            losses.update(self.criterion(output, group, targets, matched))
        return losses

    @torch.no_grad()
    def detections(self, output: DecoderOutput, images: ImageBatch, batched_inputs: list[dict]) -> list[dict]:
        """The last layer's best boxes, in pixels of the original images.

        With a softmax head each query gives its best class (2005.12872) [C]; with a sigmoid head the best
        (query, class) pairs are taken (2108.06152) [C].
        """
        probabilities, boxes = output.probabilities()[-1], to_corners(output.boxes[-1].float())
        if output.activation == "softmax":
            best, classes = probabilities.max(-1)
            scores, query = best.topk(min(self.detections_per_image, best.shape[1]))
            classes = classes.gather(1, query)
        else:
            num_classes = probabilities.shape[-1]
            flat = probabilities.flatten(1)
            scores, index = flat.topk(min(self.detections_per_image, flat.shape[1]))
            query, classes = index // num_classes, index % num_classes
        boxes = boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
        results = []
        for image, (size, inputs) in enumerate(zip(images.sizes, batched_inputs, strict=True)):
            scale = boxes.new_tensor([size[1], size[0], size[1], size[0]])
            instances = Instances(size, pred_boxes=Boxes(boxes[image] * scale))
            instances.scores, instances.pred_classes = scores[image], classes[image]
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results


def _build_training_groups(cfg) -> dict[str, nn.Module]:
    """What ``MODEL.DETR.TRAINING_GROUPS`` names; the random numbers of the other parts do not notice."""
    with torch.random.fork_rng():
        return {
            name: look_up(TRAINING_GROUP_REGISTRY, name, "MODEL.DETR.TRAINING_GROUPS")(cfg)
            for name in cfg.MODEL.DETR.TRAINING_GROUPS
        }
