"""A DETR as a graph of tensors alone: what is exported."""

from __future__ import annotations

from detectron2.modeling.backbone import Backbone
from torch import Tensor

from ..detr import DetrDetector
from ..detr.boxes import to_corners
from ..detr.detections import best_predictions
from ..detr.preprocess import pad_to_multiple
from ..structures import ImageBatch
from .base import Graph, in_pixels


class DetrGraph(Graph):
    """Unequal images are padded and masked, as in training.

    :meth:`DetrDetector.detect` takes them one by one, since convolutions carry padding over an image's border.
    """

    detector: DetrDetector

    def __init__(self, detector: DetrDetector, input_format: str):
        super().__init__(detector, input_format)
        neck = detector.input_projection
        extra = max(0, neck.num_levels - len(neck.in_features))  # each of half the side
        assert isinstance(detector.backbone, Backbone)
        self.coarsest = detector.backbone.output_shape()[neck.in_features[-1]].stride * 2**extra

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class; N is ``detections_per_image``, or as many as there are."""
        detector = self.detector
        values, padding = self.prepare(pad_to_multiple(images, detector.size_divisibility), sizes)
        output = detector.finish(detector.start_prepared(ImageBatch(values, padding, []))).outputs["own"]
        scores, labels, query = best_predictions(
            output.probabilities()[-1], output.activation, detector.detections_per_image
        )
        corners = to_corners(output.boxes[-1].float()).clamp(0, 1) * in_pixels(sizes, values.dtype).unsqueeze(1)
        return corners.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)), scores, labels
