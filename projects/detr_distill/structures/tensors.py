"""The tensors that travel inside a detector, and from it to distillation.

Letters: B images, L decoder layers, Q queries (Qs student, Qt teacher), K class scores, C width, P width of a query's
position, H heads, S memory tokens, G ground-truth objects (padded to the largest image), M pairs (padded).
Boxes are normalised (centre x, centre y, width, height) in [0, 1] unless a name ends in ``_xyxy`` or ``_pixels``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .attention import CROSS_ATTENTION, CROSS_FACTORS, SELF_ATTENTION, SELF_FACTORS, AttentionFactors
from .edges import EdgeDistributions
from .ground_truth import GroundTruth
from .pairs import Pairs

# What a loss may ask the decoder to keep beside boxes, logits, hidden states and dense attention.
SAMPLED_ATTENTION = "sampled_attention"
# What a matcher may ask a convolutional detector for: its predictions in the form of a decoder's.
PREDICTIONS = "predictions"
# What a decoder with dense attention has; and one whose maps are the softmax of products of queries and keys alone.
CAPTURES = frozenset({SELF_ATTENTION, CROSS_ATTENTION})
CAPTURES_WITH_FACTORS = CAPTURES | {SELF_FACTORS, CROSS_FACTORS}


@dataclass
class ImageBatch:
    """Images padded to one size.

    Attributes:
        tensor: (B, 3, height, width), normalised.
        mask: (B, height, width) bool, True on padding; None when no image is padded (known without a device read).
        sizes: (height, width) of each image before padding, in pixels.
    """

    tensor: Tensor
    mask: Tensor | None
    sizes: list[tuple[int, int]]

    def select(self, images: slice) -> ImageBatch:
        """Some of the images."""
        return ImageBatch(self.tensor[images], None if self.mask is None else self.mask[images], self.sizes[images])


@dataclass
class Memory:
    """What the decoder looks at: encoder output of all levels, flattened.

    Attributes:
        tokens: (B, S, C). position: (B, S, C). mask: (B, S) bool, True on padding, or None.
        shapes: (height, width) of each level; their products add up to S.
        level_sizes: (levels, 2) float, (width, height) of each level in cells: ``shapes`` on the device.
        valid_ratios: (B, levels, 2) float, the part of each level's width and height that is image and not padding;
            B = 1 where no image is padded. Both are None for a neck of one plain level.
    """

    tokens: Tensor
    position: Tensor
    mask: Tensor | None
    shapes: list[tuple[int, int]]
    level_sizes: Tensor | None = None
    valid_ratios: Tensor | None = None

    @property
    def key_mask(self) -> Tensor | None:
        """(B, 1, 1, S): the padding mask in the shape that attention takes."""
        return None if self.mask is None else self.mask[:, None, None, :]

    def select(self, images: slice) -> Memory:
        """The memory of some of the images; what all images share (a first axis of 1) stays."""
        part = {
            name: value[images]
            for name in ("tokens", "position", "mask", "valid_ratios")
            if (value := vars(self)[name]) is not None and len(value) > 1
        }
        return dataclasses.replace(self, **part)


@dataclass
class Candidates:
    """What every token of the memory offers as a query, without gradient.

    Attributes:
        scores: (B, S), the best are taken. boxes: (B, S, 4) as logits, infinite where there is none.
    """

    scores: Tensor
    boxes: Tensor


@dataclass
class QueryGroup:
    """Queries decoded together; groups never see each other unless ``sees`` says so.

    Attributes:
        name: suffix of this group's losses; the detector's own group is called ``own``.
        content: (B, Q, C). position: (B, Q, P).
        sees: names of other groups whose queries these may attend to.
        inner_mask: (Q, Q) bool, True where a query may not attend to another of its group; None: all see all.
        loss_weight: factor of the group's detection loss; 0 leaves the group unsupervised.
        forced_cost: for a decoder layer, the (B, Q, G) matching cost that replaces the group's own on that layer:
            this is how another network's assignment is imposed.
        targets: what the group is compared with instead of the batch's own ground truth, with objects that stand
            several times (denoising, one-to-many matching); None: the ground truth.
        pairs: the assignment to ``targets`` where it is known beforehand, for one layer (1, B, M), used on all.
        padding: (B, Q) bool, True where an image has no such query: it is hidden from all others and has no loss.
            A group that is seen by others has none.
        proposals: the encoder's own detections that two-stage queries were chosen from, one layer with a query a
            token; they have a loss of their own. candidates: the tokens that they were chosen among. Else None.
    """

    name: str
    content: Tensor
    position: Tensor
    sees: tuple[str, ...] = ()
    inner_mask: Tensor | None = None
    loss_weight: float = 1.0
    forced_cost: dict[int, Tensor] = field(default_factory=dict)
    targets: GroundTruth | None = None
    pairs: Pairs | None = None
    padding: Tensor | None = None
    proposals: DecoderOutput | None = None
    candidates: Candidates | None = None


@dataclass
class SampledPoints:
    """Where the heads of deformable attention look, and how much each point counts. N levels, P points a level.

    Attributes:
        locations: (B, Q, H, N, P, 2), (x, y), float32; what 0 to 1 spans, a padded level or the image, says the holder.
        weights: (B, Q, H, N, P), adding up to 1 for each head, float32.
    """

    locations: Tensor
    weights: Tensor

    def map(self, choose: Callable[[Tensor], Tensor]) -> SampledPoints:
        """The points of the queries that a function of (B, Q, ...) chooses."""
        return SampledPoints(choose(self.locations), choose(self.weights))

    def take_queries(self, rows: slice) -> SampledPoints:
        """The points of some queries."""
        return self.map(lambda values: values[:, rows])


@dataclass
class DecoderOutput:
    """Output of every decoder layer for one query group.

    Attributes:
        logits: (L, B, Q, K); with ``softmax`` the last column is "no object".
        boxes: (L, B, Q, 4). hidden: (L, B, Q, C).
        self_attention: for each layer (B, H, Q, Q), cross_attention: for each layer (B, H, Q, S): softmax over the
            last axis, per head, before dropout; None unless captured.
        self_factors, cross_factors: for each layer what these maps are made of; None unless captured in their place.
        sampled_attention: for each layer of a deformable decoder the points over the image without its padding, some
            of which may lie outside [0, 1]; None unless captured.
        edges: distributions of the boxes' edges, of a decoder that predicts them; else None.
        activation: "sigmoid" or "softmax", how logits become class probabilities.
    """

    logits: Tensor
    boxes: Tensor
    hidden: Tensor
    activation: str
    self_attention: tuple[Tensor, ...] | None = None
    cross_attention: tuple[Tensor, ...] | None = None
    self_factors: tuple[AttentionFactors, ...] | None = None
    cross_factors: tuple[AttentionFactors, ...] | None = None
    sampled_attention: tuple[SampledPoints, ...] | None = None
    edges: EdgeDistributions | None = None

    def select(self, images: slice) -> DecoderOutput:
        """The output of some of the images."""

        def part(kept: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if kept is None else tuple(values[images] for values in kept)

        def factors(kept: tuple[AttentionFactors, ...] | None) -> tuple[AttentionFactors, ...] | None:
            return None if kept is None else tuple(values.select(images) for values in kept)

        return dataclasses.replace(
            self,
            logits=self.logits[:, images],
            boxes=self.boxes[:, images],
            hidden=self.hidden[:, images],
            self_attention=part(self.self_attention),
            cross_attention=part(self.cross_attention),
            self_factors=factors(self.self_factors),
            cross_factors=factors(self.cross_factors),
            sampled_attention=None
            if self.sampled_attention is None
            else tuple(points.map(lambda values: values[images]) for points in self.sampled_attention),
            edges=None if self.edges is None else self.edges.map(lambda values: values[:, images]),
        )

    @property
    def num_layers(self) -> int:
        return self.logits.shape[0]

    def class_logits(self) -> Tensor:
        """(L, B, Q, number of classes) logits in float32, without "no object"."""
        logits = self.logits.float()
        return logits[..., :-1] if self.activation == "softmax" else logits

    def score_logits(self) -> Tensor:
        """(L, B, Q, number of classes) in float32: their sigmoid is :meth:`probabilities`, each read by itself."""
        if self.activation == "sigmoid":
            return self.logits.float()
        log_score = self.logits.float().log_softmax(-1)[..., :-1]
        # A class that has all the probability has no finite logit.
        return log_score - log_score.clamp(max=-1e-6).expm1().neg().log()

    def probabilities(self) -> Tensor:
        """(L, B, Q, number of classes) class probabilities in float32, without "no object"."""
        logits = self.logits.float()
        if self.activation == "softmax":
            return logits.softmax(-1)[..., :-1]
        return logits.sigmoid()


def one_layer(logits: Tensor, boxes: Tensor, activation: str) -> DecoderOutput:
    """Predictions (B, Q, K) and (B, Q, 4) of no decoder as an output of one layer, without hidden states."""
    return DecoderOutput(logits[None], boxes[None], logits.new_zeros(1, *logits.shape[:2], 0), activation)
