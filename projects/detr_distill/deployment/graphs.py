"""Which graph belongs to a detector."""

from __future__ import annotations

from torch import nn

from ..detr import DetrDetector
from ..errors import ConfigError
from .detr_graph import DetrGraph


def graph_of(detector: nn.Module) -> nn.Module:
    """The detector as a graph of tensors, from padded images and their sizes to boxes, scores and labels.

    Raises:
        ConfigError: a detector of a kind that has none.
    """
    if isinstance(detector, DetrDetector):
        return DetrGraph(detector)
    raise ConfigError(
        f"MODEL.META_ARCHITECTURE {type(detector).__name__} cannot be exported as a graph, DetrDetector can. Export "
        "its weights: --format safetensors."
    )
