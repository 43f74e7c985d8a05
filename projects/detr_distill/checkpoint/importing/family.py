"""What the import has to know of a family of detectors, in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .rules import Rule

# Keys of a family's forms: transformers, detrex, and the code that the family's authors published.
TRANSFORMERS, DETREX, OFFICIAL = "transformers", "detrex", "official"

# Of RGB pixels in the range 0 to 255: the ImageNet statistics with which all sources train.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass
class Settings:
    """How a network was built, as far as its weights do not say.

    Attributes:
        num_heads: of every attention. dilation: the backbone's last stage is dilated instead of strided (DC5).
        num_queries: of two-stage networks, which have none in their weights. refinement: Deformable DETR refines boxes
            from layer to layer; None: to be read from the weights. temperature: of the image cells' sine embedding.
        position_offset: of the cells in the sine embedding of networks with levels. logit_epsilon: how far from 0 and 1
            references stay before their logit is taken; 0 where boxes are absolute.
        pixel_mean, pixel_std: of pixels in the range 0 to 255, RGB. class_names: empty where unknown.
    """

    num_heads: int = 8
    dilation: bool = False
    num_queries: int = 300
    refinement: bool | None = None
    temperature: float = 10000.0
    position_offset: float = -0.5
    logit_epsilon: float = 0.0
    pixel_mean: tuple[float, ...] = PIXEL_MEAN
    pixel_std: tuple[float, ...] = PIXEL_STD
    class_names: tuple[str, ...] = ()


# Weights under our names and the source's word on refinement, to weights with heads and queries in our order.
Arrange = Callable[[dict[str, Tensor], bool | None], dict[str, Tensor]]
# Adds to the node MODEL.DETR, as nested dictionaries, what weights under our names and settings say.
Describe = Callable[[dict[str, Any], Mapping[str, Tensor], Settings], None]


def keep_arrangement(weights: dict[str, Tensor], refinement: bool | None) -> dict[str, Tensor]:
    """Heads and queries that the source arranges as they are here."""
    return weights


def describe_nothing(node: dict[str, Any], weights: Mapping[str, Tensor], settings: Settings) -> None:
    """Families of which every network has the parts that the record names."""


@dataclass(frozen=True)
class Supervision:
    """Which loss the classes have, and the class, the L1 distance and the GIoU in the matching costs and the losses."""

    classification: str
    matching_costs: tuple[float, float, float]
    loss_weights: tuple[float, float, float]

    def node(self) -> dict[str, Any]:
        """Keys of ``MODEL.DETR``, as nested dictionaries."""
        class_cost, l1_cost, giou_cost = self.matching_costs
        class_weight, l1_weight, giou_weight = self.loss_weights
        return {
            "MATCHER": {"COST_CLASS": class_cost, "COST_L1": l1_cost, "COST_GIOU": giou_cost},
            "LOSS": {
                "CLASSIFICATION": self.classification,
                "CLASS_WEIGHT": class_weight,
                "L1_WEIGHT": l1_weight,
                "GIOU_WEIGHT": giou_weight,
            },
        }


@dataclass(frozen=True)
class Form:
    """A family as one source builds and keeps it.

    Attributes:
        has: parameter names by which its checkpoints are recognised; of transformers, the ``model_type`` of
            ``config.json``. lacks: names that only relatives have which cannot be imported.
        arrange: sorts heads and queries.
        temperature, position_offset, logit_epsilon: see :class:`Settings`; where the source stores none.
        temperature_key: of the stored settings; empty: none tells the temperature of this family.
        expected: stored settings, with the only value that exists here; beside those of all families.
    """

    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    arrange: Arrange = keep_arrangement
    temperature: float = 10000.0
    temperature_key: str = ""
    position_offset: float = -0.5
    logit_epsilon: float = 0.0
    expected: Mapping[str, object] = field(default_factory=dict)

    def stored_temperature(self, stored: Mapping[str, Any]) -> float:
        """The temperature in a source's stored settings, or its default."""
        return float(stored.get(self.temperature_key, self.temperature))


@dataclass(frozen=True)
class Family:
    """A family of detectors: which parts it has here, and how the sources keep it.

    Attributes:
        name: of the family, and of the authors' code as a source.
        decoder, encoder, queries: names of its plug-ins. decoder_keys: more keys of its decoder, with values.
        supervision: its losses and their weights.
        rules: from parameter names to ours, after those of a source's layers.
        forms: of each source that has it; keys are ``TRANSFORMERS``, ``DETREX`` and ``OFFICIAL``.
        has_levels: it reads several feature levels, and numbers its heads.
        describe: adds what only some of its networks have.
        label_owner: plug-in that has an embedding of the class labels; empty: none. unknown_label: extra rows of
            that embedding are contents of the detector's own queries.
        detections_per_image: of its evaluation.
    """

    name: str
    decoder: str
    encoder: str
    queries: str
    supervision: Supervision
    rules: Sequence[Rule]
    forms: Mapping[str, Form]
    decoder_keys: Mapping[str, Any] = field(default_factory=dict)
    has_levels: bool = False
    describe: Describe = describe_nothing
    label_owner: str = ""
    unknown_label: bool = False
    detections_per_image: int = 100

    @property
    def head(self) -> str:
        """Prefix of the parameters of a head."""
        return "decoder.heads.0" if self.has_levels else "decoder.heads"

    def node(self) -> dict[str, Any]:
        """Keys of ``MODEL.DETR`` that all networks of the family share, as nested dictionaries."""
        return {
            "DECODER": {"NAME": self.decoder, **self.decoder_keys},
            "ENCODER": {"NAME": self.encoder},
            "QUERIES": {"NAME": self.queries},
            **self.supervision.node(),
        }
