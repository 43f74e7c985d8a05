"""A detector of transformers in two halves: up to maps, and from maps to predictions of query groups.

Letters: B images, L decoder layers, Q queries, C channels.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ..detr.queries.base import QueryForm
from ..structures import DecoderOutput, Memory, QueryGroup

# From the network's own queries to all groups that are decoded, its own first.
MakeGroups = Callable[[QueryGroup], list[QueryGroup]]


@dataclass
class Decoded:
    """What the second half gives.

    Attributes:
        groups: the network's own queries first. outputs: of the groups, by name. memory: the encoder's output.
        encoder: the encoder's own detections that the queries start at, one layer; None without any.
        decode: the decoder on another group alone, with the same maps; None: it takes none.
        first: by group, predictions of a head before the first layer's, one layer; empty without such a head.
    """

    groups: list[QueryGroup]
    outputs: dict[str, DecoderOutput]
    memory: Memory
    encoder: DecoderOutput | None = None
    decode: Callable[[QueryGroup], DecoderOutput] | None = None
    first: dict[str, DecoderOutput] = field(default_factory=dict)


class Network(ABC):
    """Runs a model of one kind, which stays as it is.

    Args:
        detector: the ``...ForObjectDetection``.

    Attributes:
        stretches: it does not look at a padding mask, so that all images need one size.
        size_multiple: of the sides of images, in pixels.
    """

    stretches: ClassVar[bool]
    size_multiple: ClassVar[int] = 1

    def __init__(self, detector: Any):
        self.detector = detector

    @property
    def config(self) -> Any:
        """The library's configuration of the model."""
        return self.detector.config

    @property
    @abstractmethod
    def level_channels(self) -> list[int]:
        """C of the maps that the encoder reads, fine to coarse."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Of hidden states and of queries' content."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """L."""

    @property
    def edge_bins(self) -> tuple[float, ...]:
        """Of the distributions of its boxes' edges: max_num_bins, up and reg_scale of D-FINE; empty where it has none."""
        return ()

    @property
    def query_form(self) -> QueryForm | None:
        """Of the queries that the decoder takes; None: it takes none but its own."""
        return None

    @property
    @abstractmethod
    def matching_weights(self) -> dict[str, float]:
        """The library's own settings of :class:`HungarianMatcher`."""

    def every_layer(self) -> AbstractContextManager[None]:
        """Within, the model gives every layer's predictions in eval mode too."""
        return contextlib.nullcontext()

    @property
    def denoising_embedding(self) -> nn.Embedding | None:
        """Content of denoising queries by class; None where the model has no such group."""
        return None

    @abstractmethod
    def start(self, pixels: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Images to the maps that the encoder reads, (B, C, height, width), fine to coarse.

        Args:
            pixels: (B, 3, height, width), normalised. mask: (B, height, width) bool, True on padding, or None.
        """

    @abstractmethod
    def finish(self, maps: list[Tensor], make_groups: MakeGroups) -> Decoded:
        """Maps to predictions of all groups, in one decoder pass."""
