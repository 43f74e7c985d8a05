"""Which parts of a detector go together: checked when it is built."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import ConfigError
from ..registry import QUERIES_REGISTRY
from .decoders.base import Decoder
from .encoders.base import Encoder
from .necks.base import Neck
from .queries.base import PLACE_WIDTHS, Queries
from .training_groups.base import TrainingGroup


def check_parts(neck: Neck, encoder: Encoder, decoder: Decoder, queries: Queries) -> None:
    """Raises ConfigError where a part and the neck's levels do not fit, or the decoder cannot read the queries."""
    for part in (encoder, decoder, queries):
        if part.num_levels is not None and (not neck.has_levels or part.num_levels != neck.num_levels):
            raise ConfigError(
                f"MODEL.DETR.NECK.NAME is {type(neck).__name__}; {type(part).__name__} samples {part.num_levels} "
                f"levels. Set it to {part.neck_name}."
            )
    for part in (encoder, decoder):
        if neck.has_levels and not part.takes_levels:
            raise ConfigError(
                f"MODEL.DETR.NECK.NAME is {type(neck).__name__}, which gives several levels; {type(part).__name__} "
                "reads one. Set it to AnchorNeck or SingleLevelNeck."
            )
    width, found = queries.widths
    if decoder.position_width != found:
        fitting = _fitting_queries(decoder.position_width, width, type(neck).__name__)
        raise ConfigError(
            f"MODEL.DETR.QUERIES.NAME is {type(queries).__name__}, whose positions are {found} wide; "
            f"{type(decoder).__name__} reads {decoder.position_width}. Registered queries of that width: "
            f"{', '.join(fitting) or 'none'}."
        )


def _fitting_queries(position_width: int, width: int, neck: str) -> list[str]:
    """Names of the registered queries whose positions are ``position_width`` wide in a network of ``width``.

    Those that need another ``neck`` are left out.
    """
    return sorted(
        name
        for name, queries in QUERIES_REGISTRY
        if PLACE_WIDTHS.get(queries.position_kind, width) == position_width and queries.neck_name in ("", neck)
    )


def check_training_groups(training_groups: Mapping[str, nn.Module], queries: Queries) -> None:
    """Raises ConfigError where a training group makes queries of another kind than the detector's own."""
    for name, maker in training_groups.items():
        kind = maker.position_kind if isinstance(maker, TrainingGroup) else None
        if kind not in (None, queries.position_kind):
            raise ConfigError(
                f"MODEL.DETR.TRAINING_GROUPS names {name}, whose queries are boxes; the positions of "
                f"MODEL.DETR.QUERIES.NAME {type(queries).__name__} are not. Remove it, or take queries that are boxes, "
                "such as AnchorBoxQueries with DabDecoder."
            )
