"""A detector of transformers in two halves: up to maps, and from maps to predictions of query groups.

Letters: B images, L decoder layers, Q queries, C channels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..detr.queries.base import QueryForm
from ..structures import DecoderOutput, ImageBatch, Memory, QueryGroup
from ..structures.levels import join_maps

# From the network's own queries to all groups that are decoded, its own first.
MakeGroups = Callable[[QueryGroup], list[QueryGroup]]


@dataclass
class Halfway:
    """A batch, half way through a network.

    Attributes:
        images: prepared. maps: that the encoder reads, (B, C, height, width), fine to coarse.
        features: what else the second half needs of the first: tensors (B, ...), in lists or tuples; or None.
    """

    images: ImageBatch
    maps: list[Tensor]
    features: Any = None

    def select(self, images: slice) -> Halfway:
        """What belongs to some of the images."""
        maps = [values[images] for values in self.maps]
        return Halfway(self.images.select(images), maps, _select(self.features, images))


def _select(values: Any, images: slice) -> Any:
    if isinstance(values, list | tuple):
        return type(values)(_select(part, images) for part in values)
    return None if values is None else values[images]


@dataclass
class Decoded:
    """What the second half gives.

    Attributes:
        groups: the network's own queries first. outputs: of the groups, by name. memory: the encoder's output.
        encoder: by group, the encoder's own detections that its queries start at, one layer; empty without any.
        decode: the decoder on another group alone, with the same maps; None: it takes none.
        binary_encoder: these tell objects from background alone, whatever class.
        first: by group, predictions of a head before the first layer's, one layer; empty without such a head.
    """

    groups: list[QueryGroup]
    outputs: dict[str, DecoderOutput]
    memory: Memory
    encoder: dict[str, DecoderOutput] = field(default_factory=dict)
    binary_encoder: bool = False
    decode: Callable[[QueryGroup], DecoderOutput] | None = None
    first: dict[str, DecoderOutput] = field(default_factory=dict)


class Network(ABC):
    """Runs a model of one kind, which stays as it is.

    Args:
        detector: the ``...ForObjectDetection``.
    """

    def __init__(self, detector: Any):
        self.detector = detector

    @property
    def config(self) -> Any:
        """The library's configuration of the model."""
        return self.detector.config

    @property
    @abstractmethod
    def stretches(self) -> bool:
        """It does not look at a padding mask, or cannot have sides of any length: all images need one size."""

    @property
    def size_multiple(self) -> int:
        """What the sides of stretched images must be a multiple of, in pixels."""
        return 1

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
        """Of its boxes' edges, where it has distributions of them: max_num_bins, up and reg_scale of D-FINE."""
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
    def start(self, images: ImageBatch) -> Halfway:
        """Images to the maps that the encoder reads."""

    @abstractmethod
    def finish(self, half: Halfway, make_groups: MakeGroups) -> Decoded:
        """Maps to predictions of all groups, in one decoder pass."""

    @contextlib.contextmanager
    def unchecked(self, encoder: nn.Module) -> Iterator[None]:
        """Within, encoder layers do not look for infinite values, which waits for the device in training.

        Where nothing is dropped, that look is all that a layer's mode decides.
        """
        config = self.config
        layers = [x for x in encoder.modules() if type(x).__name__.endswith("EncoderLayer") and x.training]
        quiet = layers if config.dropout == config.activation_dropout == 0 else []
        for layer in quiet:
            layer.training = False
        try:
            yield
        finally:
            for layer in quiet:
                layer.training = True


def as_memory(maps: list[Tensor]) -> Memory:
    """An encoder's output (B, C, height, width) as tokens; the library keeps positions to itself."""
    tokens = join_maps(maps)
    shapes = [(values.shape[-2], values.shape[-1]) for values in maps]
    return Memory(tokens, tokens.new_zeros(1).expand(1, *tokens.shape[1:]), None, shapes)


def split_queries(output: DecoderOutput, sizes: list[int]) -> list[DecoderOutput]:
    """The part of each group on the query axis."""
    ends = itertools.accumulate(sizes)
    return [_take_queries(output, slice(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _take_queries(output: DecoderOutput, rows: slice) -> DecoderOutput:
    return dataclasses.replace(
        output,
        logits=output.logits[:, :, rows],
        boxes=output.boxes[:, :, rows],
        hidden=output.hidden[:, :, rows],
        edges=None if output.edges is None else output.edges.map(lambda values: values[:, :, rows]),
    )
