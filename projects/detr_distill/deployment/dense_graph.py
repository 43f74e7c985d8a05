"""RetinaNet and FCOS as a graph of tensors alone: what is exported.

Letters: A anchors of a level, K classes, D candidates of all levels.
"""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor

from .base import Graph, in_pixels
from .suppression import best_of_each


class DenseGraph(Graph):
    """One image and its detections after non-maximum suppression, which keeps as many as it will.

    Levels are added up, so that the sides are multiples of the coarsest one's stride.
    """

    detector: DenseDetector
    most_images = 1

    def __init__(self, detector: DenseDetector, input_format: str):
        super().__init__(detector, input_format)
        shapes = detector.backbone.output_shape()
        self.multiple = max(shapes[name].stride for name in detector.head_in_features)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        detector = self.detector
        maps = detector.backbone(self.prepare(images, sizes)[0])
        boxes, scores, labels = self._candidates([maps[name] for name in detector.head_in_features])
        kept = best_of_each(boxes, scores, labels, detector.test_nms_thresh)
        corners = boxes[kept].clamp(min=0).minimum(in_pixels(sizes, boxes.dtype))
        sure = (scores[kept] > detector.test_score_thresh) & ((corners[:, 2:] - corners[:, :2]) > 0).all(-1)
        kept, corners = kept[sure], corners[sure]
        return corners.unsqueeze(0), scores[kept].unsqueeze(0), labels[kept].unsqueeze(0)

    def _candidates(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The best predictions of each level: boxes (D, 4) in pixels, scores (D,) and labels (D,)."""
        detector = self.detector
        predictions = detector.head(features)
        lengths = [detector.num_classes, 4, 1][: len(predictions)]
        by_kind = detector._transpose_dense_predictions(predictions, lengths)
        found = []
        for anchors, logits, deltas, *centerness in zip(detector.anchor_generator(features), *by_kind, strict=True):
            scores = logits[0].sigmoid()
            if isinstance(detector, FCOS):
                scores = (scores * centerness[0][0].sigmoid()).sqrt()
            best, index = scores.flatten().topk(torch.sym_min(detector.test_topk_candidates, scores.numel()))
            anchor = index // detector.num_classes
            boxes = detector.box2box_transform.apply_deltas(deltas[0][anchor], anchors.tensor[anchor])
            found.append((boxes, best, index % detector.num_classes))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return boxes, scores, labels
