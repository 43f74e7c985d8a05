"""Faster R-CNN as a graph of tensors alone: what is exported.

Letters: R regions, K classes, C channels, P side of a pooled region, D detections.
"""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor

from ..errors import ConfigError
from .base import Graph, in_pixels
from .suppression import best_of_each


class RegionGraph(Graph):
    """One image and its detections, of which there are as many as non-maximum suppression leaves.

    Raises:
        ConfigError: the detector has other heads than those of Faster R-CNN on a pyramid.
    """

    detector: GeneralizedRCNN
    most_images = 1

    def __init__(self, detector: GeneralizedRCNN, input_format: str):
        super().__init__(detector, input_format)
        parts, expected = (detector.proposal_generator, detector.roi_heads), (RPN, StandardROIHeads)
        if any(type(part) is not kind for part, kind in zip(parts, expected, strict=True)):
            raise ConfigError(
                f"This R-CNN has {' and '.join(type(part).__name__ for part in parts)}, and of R-CNNs those with RPN "
                "and StandardROIHeads can be exported as a graph. Export its weights: --format safetensors."
            )
        self.multiple = max(detector.backbone.size_divisibility, 1)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class; N is at most ``TEST.DETECTIONS_PER_IMAGE``."""
        maps = self.detector.backbone(self.prepare(images, sizes)[0])
        corner = in_pixels(sizes, torch.float32)
        regions = self._propose(maps, corner)
        predictor = self.detector.roi_heads.box_predictor
        logits, deltas = predictor(self.detector.roi_heads.box_head(self._pool(maps, regions)))
        scores = logits.softmax(-1)[:, :-1]
        boxes = predictor.box2box_transform.apply_deltas(deltas, regions).unflatten(-1, (-1, 4))  # (R, K or 1, 4)
        boxes = boxes.expand(-1, scores.shape[1], 4).clamp(min=0).minimum(corner)
        region, label = (scores > predictor.test_score_thresh).nonzero().unbind(1)
        boxes, scores = boxes[region, label], scores[region, label]
        kept = best_of_each(boxes, scores, label, predictor.test_nms_thresh, predictor.test_topk_per_image)
        boxes, scores, label = boxes[kept], scores[kept], label[kept]
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(-1)
        return boxes[has_area].unsqueeze(0), scores[has_area].unsqueeze(0), label[has_area].unsqueeze(0)

    def _propose(self, maps: dict[str, Tensor], corner: Tensor) -> Tensor:
        """The regions (R, 4) that the proposal network finds, x1, y1, x2, y2 in pixels."""
        network = self.detector.proposal_generator
        features = [maps[name] for name in network.in_features]
        anchors = network.anchor_generator(features)
        found = []
        for level, (logits, deltas, grid) in enumerate(zip(*network.rpn_head(features), anchors, strict=True)):
            scores = logits[0].permute(1, 2, 0).flatten()
            best, index = scores.topk(torch.sym_min(network.pre_nms_topk[False], scores.numel()))
            moves = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
            boxes = network.box2box_transform.apply_deltas(moves[index], grid.tensor[index])
            found.append((boxes.clamp(min=0).minimum(corner), best, torch.full_like(index, level)))
        boxes, scores, levels = (torch.cat(parts) for parts in zip(*found, strict=True))
        # A box without area suppresses nothing; with the lowest score it takes no other's place.
        has_area = (boxes[:, 2:] - boxes[:, :2] > network.min_box_size).all(-1)
        scores = scores.masked_fill(~has_area, -torch.inf)
        kept = best_of_each(boxes, scores, levels, network.nms_thresh, network.post_nms_topk[False])
        return boxes[kept[has_area[kept]]]

    def _pool(self, maps: dict[str, Tensor], regions: Tensor) -> Tensor:
        """(R, C, P, P): every region from every level, of which its own is taken; what is exported has no choice."""
        heads = self.detector.roi_heads
        pooler = heads.box_pooler
        rows = torch.cat([torch.zeros_like(regions[:, :1]), regions], dim=1)
        sides = regions[:, 2:] - regions[:, :2]
        size = (sides[:, 0] * sides[:, 1]).sqrt()
        level = torch.floor(pooler.canonical_level + torch.log2(size / pooler.canonical_box_size + 1e-8))
        level = level.clamp(pooler.min_level, pooler.max_level).view(-1, 1, 1, 1)
        pooled: Tensor | None = None
        for number, (pool, name) in enumerate(zip(pooler.level_poolers, heads.box_in_features, strict=True)):
            values = pool(maps[name], rows)
            pooled = values if pooled is None else torch.where(level == pooler.min_level + number, values, pooled)
        assert pooled is not None
        return pooled
