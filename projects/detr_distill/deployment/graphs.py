"""Which graph belongs to a detector."""

from __future__ import annotations

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from torch import nn

from ..detr import DetrDetector
from ..errors import ConfigError
from ..hugging_face import TransformersStudent
from .base import Graph
from .dense_graph import DenseGraph
from .detr_graph import DetrGraph
from .library_graph import LibraryGraph
from .region_graph import RegionGraph


def graph_of(detector: nn.Module, input_format: str) -> Graph:
    """The detector as a graph of tensors, from padded images and their sizes to boxes, scores and labels.

    Args:
        input_format: "BGR" or "RGB", the order of channels that the detector reads; a graph takes RGB.

    Raises:
        ConfigError: a detector of a kind that has none.
    """
    for kind, graph in _GRAPHS.items():
        if isinstance(detector, kind):
            return graph(detector, input_format)
    raise ConfigError(
        f"MODEL.META_ARCHITECTURE {type(detector).__name__} cannot be exported as a graph; "
        f"{', '.join(kind.__name__ for kind in _GRAPHS)} can. Export its weights: --format safetensors."
    )


_GRAPHS: dict[type[nn.Module], type[Graph]] = {
    DetrDetector: DetrGraph,
    TransformersStudent: LibraryGraph,
    DenseDetector: DenseGraph,
    GeneralizedRCNN: RegionGraph,
}
