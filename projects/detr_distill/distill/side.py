"""What a student or a teacher can give: asked by matchers and losses when they are built, never by its class."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..detr.queries.base import Queries, QueryForm
from ..errors import ConfigError
from ..structures import CROSS_ATTENTION, PREDICTIONS, SAMPLED_ATTENTION, SELF_ATTENTION

__all__ = [
    "ASSIGNMENT",
    "CROSS_ATTENTION",
    "DECODING",
    "EDGES",
    "HIDDEN",
    "MAPS",
    "MEMORY",
    "ONE_TO_ONE",
    "PREDICTIONS",
    "QUERIES",
    "SAMPLED_ATTENTION",
    "SELF_ATTENTION",
    "ReadThrough",
    "Side",
    "check_side",
]

# What a side gives; the words stand in messages. Attention and predictions, which are kept only where somebody asks
# for them, are named in structures/, which decoders know too.
MAPS = "feature maps"
MEMORY = "an encoder's memory"
QUERIES = "queries"
DECODING = "a decoder for queries of others"
HIDDEN = "hidden states"
EDGES = "distributions of its boxes' edges"
ASSIGNMENT = "an assignment of its own queries to objects"
ONE_TO_ONE = "one prediction an object"


class Side:
    """A student or a teacher, as the other parts see it. A subclass overrides what it gives."""

    @property
    def gives(self) -> frozenset[str]:
        """Of the above and of what decoders capture."""
        return frozenset()

    @property
    def name(self) -> str:
        """Of the network, for messages."""
        return type(self).__name__

    @property
    def part(self) -> str:
        """Name of the part that has or lacks attention, for messages."""
        return self.name

    @property
    def queries(self) -> Queries | QueryForm | None:
        """Its own, or of which form they are; None where it has none."""
        return None

    @property
    def hidden_width(self) -> int:
        """Width of its hidden states, 0 where it has none."""
        return 0

    @property
    def num_layers(self) -> int:
        """Layers of its decoder, 1 without one."""
        return 1

    @property
    def edge_bins(self) -> tuple[float, ...]:
        """Of its boxes' edges, where it has distributions of them: max_num_bins, up and reg_scale of D-FINE."""
        return ()

    @property
    def feature_channels(self) -> Mapping[str, int]:
        """Channels of the maps that its head reads, by name."""
        return {}

    @property
    def memory_channels(self) -> Mapping[str, int]:
        """Channels of the encoder's output, ``memory0``, ``memory1``, ..."""
        return {}

    @property
    def map_channels(self) -> Mapping[str, int]:
        """Channels of all maps that a loss may name."""
        return {**self.feature_channels, **self.memory_channels}

    def read_projection(self) -> nn.Module | None:
        """What a query reads of a token of the memory in the last layer; None where nothing is known."""
        return None


def check_side(
    side: Side, who: str, wanted: frozenset[str], asker: str, key: str, remedies: Mapping[str, str] | None = None
) -> None:
    """Raises ConfigError where a side lacks something.

    Args:
        who: "student" or "teacher". wanted: of what sides give. asker: the plug-in that asks for it.
        key: the list that names the plug-in. remedies: for each of these what helps, beside leaving the plug-in out.
    """
    missing = sorted(wanted - side.gives)
    if missing:
        helps = [remedies[name] for name in missing if name in remedies] if remedies else []
        raise ConfigError(
            f"{key}: {asker} asks for {' and '.join(missing)}, which the {who}'s {side.part} does not have. "
            f"Remove {asker} from the list{', or ' if helps else ''}{' and '.join(helps)}."
        )


class ReadThrough(Side):
    """Gives what another side gives.

    Attributes:
        reader: that side.
    """

    reader: Side

    @property
    def gives(self) -> frozenset[str]:
        return self.reader.gives

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def part(self) -> str:
        return self.reader.part

    @property
    def queries(self) -> Queries | QueryForm | None:
        return self.reader.queries

    @property
    def hidden_width(self) -> int:
        return self.reader.hidden_width

    @property
    def num_layers(self) -> int:
        return self.reader.num_layers

    @property
    def edge_bins(self) -> tuple[float, ...]:
        return self.reader.edge_bins

    @property
    def feature_channels(self) -> Mapping[str, int]:
        return self.reader.feature_channels

    @property
    def memory_channels(self) -> Mapping[str, int]:
        return self.reader.memory_channels

    def read_projection(self) -> nn.Module | None:
        return self.reader.read_projection()
