"""What a detector's settings may be, and which of its parts go together: checked when it is built."""

from __future__ import annotations

from operator import attrgetter

from detectron2.config import CfgNode
from torch import nn

from ..config.ranges import Range
from ..errors import ConfigError
from ..registry import QUERIES_REGISTRY

# Under MODEL.DETR. A temperature is the ratio between the longest and the shortest wave length.
RANGES = {
    "NUM_CLASSES": Range(1),
    "NUM_QUERIES": Range(1),
    "HIDDEN_DIM": Range(1),
    "NUM_HEADS": Range(1),
    "FFN_DIM": Range(1),
    "DROPOUT": Range(0, below=1),  # what is kept is divided by 1 - DROPOUT
    "NUM_LEVELS": Range(1),
    "SIZE_DIVISIBILITY": Range(1),
    "POSITION_TEMPERATURE": Range(1),
    "ENCODER.NUM_LAYERS": Range(0),
    "ENCODER.NUM_POINTS": Range(1),
    "DECODER.NUM_LAYERS": Range(1),
    "DECODER.NUM_POINTS": Range(1),
    "DECODER.POINT_TEMPERATURE": Range(1),
    "ADAMIXER.NUM_GROUPS": Range(1),
    "ADAMIXER.IN_POINTS": Range(1),
    "ADAMIXER.OUT_POINTS": Range(1),
    "DENOISING.NUM_GROUPS": Range(1),
    "DENOISING.LABEL_NOISE": Range(0, most=1),
    "DENOISING.BOX_NOISE": Range(0),
    "CONTRASTIVE_DENOISING.NUM_PAIRS": Range(1),
    "CONTRASTIVE_DENOISING.LABEL_NOISE": Range(0, most=2),  # half of it is a probability
    "CONTRASTIVE_DENOISING.BOX_NOISE": Range(0),
}


# Widths of the kinds of positions that are places, see queries.py; an embedding is as wide as the content.
PLACE_WIDTHS = {"box_logits": 4, "point_logits": 2}


def check_settings(cfg: CfgNode) -> None:
    """Raises ConfigError where a number under ``MODEL.DETR`` is outside its range."""
    for key, allowed in RANGES.items():
        allowed.check(f"MODEL.DETR.{key}", attrgetter(key)(cfg.MODEL.DETR))


def check_parts(neck: nn.Module, encoder: nn.Module, decoder: nn.Module, queries: nn.Module) -> None:
    """Raises ConfigError where a part samples levels that the neck does not give, or cannot read the queries.

    Args:
        neck: says in ``num_levels`` how many levels can be sampled. encoder, decoder, queries: may say in
            ``num_levels`` how many they sample. decoder: says in ``position_width`` what it reads. queries: say in
            ``widths`` (content, position) what they give.
    """
    for part in (encoder, decoder, queries):
        levels = getattr(part, "num_levels", None)
        if levels is not None and levels != neck.num_levels:
            raise ConfigError(
                f"MODEL.DETR.NECK.NAME is {type(neck).__name__}; {type(part).__name__} samples {levels} levels. "
                f"Set it to {part.neck_name}."
            )
    width, found = queries.widths  # type: ignore[misc]
    if decoder.position_width != found:
        fitting = _fitting_queries(decoder.position_width, width, type(neck).__name__)  # type: ignore[arg-type]
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
        if PLACE_WIDTHS.get(getattr(queries, "position_kind", ""), width) == position_width
        and getattr(queries, "neck_name", neck) == neck
    )


def check_training_groups(training_groups: dict[str, nn.Module], queries: nn.Module) -> None:
    """Raises ConfigError where a training group makes queries of another kind than the detector's own."""
    for name, maker in training_groups.items():
        expected = getattr(maker, "position_kind", queries.position_kind)
        if expected != queries.position_kind:
            raise ConfigError(
                f"MODEL.DETR.TRAINING_GROUPS names {name}, whose queries are boxes; the positions of "
                f"MODEL.DETR.QUERIES.NAME {type(queries).__name__} are not. Remove it, or take queries that are boxes, "
                "such as AnchorQueries with DabDecoder."
            )
