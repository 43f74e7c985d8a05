"""The cost of giving a ground-truth object to a query.

Letters: L layers, B images, Q queries, G objects (padded), K class scores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, Words
from ...plugin import Plugin
from ...structures import DecoderOutput, GroundTruth
from ..boxes import as_compared, pairwise_giou
from ..keys import FOCAL_ALPHA, FOCAL_GAMMA, L1_BOXES
from .solver import SOLVERS, check_solver


def box_cost(
    pred_boxes: Tensor, gt_boxes: Tensor, weight_l1: float, weight_giou: float, form: str = "centres"
) -> Tensor:
    """Weighted L1 distance minus weighted GIoU of every pair: (..., Q, 4) and (..., G, 4) to (..., Q, G).

    Args:
        form: what the L1 distance compares, "centres" or "corners".
    """
    distance = torch.cdist(as_compared(pred_boxes, form), as_compared(gt_boxes, form), p=1)
    return torch.sub(weight_l1 * distance, pairwise_giou(pred_boxes, gt_boxes), alpha=weight_giou)


class HungarianMatcher(Plugin, node="MODEL.DETR.MATCHER"):
    """Matching cost of DETR: class, L1 and GIoU terms.

    With a softmax head the class cost is minus the probability of the object's class (2005.12872) [P]; with a sigmoid
    head it is the difference of the two focal terms (2108.06152) [C].
    """

    cost_class: float = key(1.0, "weight of the class term in the matching with ground truth", NOT_NEGATIVE)
    cost_l1: float = key(5.0, "weight of the L1 term", NOT_NEGATIVE)
    cost_giou: float = key(2.0, "weight of the generalised-IoU term", NOT_NEGATIVE)
    focal_alpha: float = FOCAL_ALPHA
    focal_gamma: float = FOCAL_GAMMA
    l1_boxes: str = L1_BOXES
    solver: str = key(
        "auto",
        'where all matchings are solved, those of teacher and student too, exactly: `"device"` (CUDA, by a Triton '
        'kernel; the host reads nothing), `"scipy"` on the host, or `"auto"`, the device where that is possible',
        Words(*SOLVERS),
    )

    @classmethod
    def from_config(cls, cfg: CfgNode, *context: Any) -> dict[str, Any]:
        check_solver(cfg.MODEL.DETR.MATCHER.SOLVER, cfg.MODEL.DEVICE)
        return cls.read_keys(cfg)

    @torch.no_grad()
    def forward(self, output: DecoderOutput, targets: GroundTruth) -> Tensor:
        """Cost of every query and object.

        Args:
            output: of L layers. targets: of the same images. Labels below 0 have no class cost.

        Returns:
            (L, B, Q, G) float32.
        """
        device = output.logits.device.type
        with torch.autocast(device, enabled=False):
            class_cost = self._class_cost(output)
            layers, _, queries, _ = class_cost.shape
            columns = targets.labels.clamp(min=0)[None, :, None, :].expand(layers, -1, queries, -1)
            known = (targets.labels >= 0)[None, :, None, :]
            class_cost = class_cost.gather(-1, columns) * known
            gt_boxes = targets.boxes.float().unsqueeze(0).expand(layers, -1, -1, -1)
            boxes = output.boxes.float()
            of_boxes = box_cost(boxes, gt_boxes, self.cost_l1, self.cost_giou, self.l1_boxes)
            return torch.add(of_boxes, class_cost, alpha=self.cost_class)

    def _class_cost(self, output: DecoderOutput) -> Tensor:
        """(L, B, Q, K): cost of giving each class to each query."""
        if output.activation == "softmax":
            return -output.probabilities()
        logits = output.logits.float()
        probabilities = logits.sigmoid()
        # -log p = softplus(-x) and -log(1 - p) = softplus(x): no epsilon is needed.
        positive = self.focal_alpha * (1 - probabilities) ** self.focal_gamma * F.softplus(-logits)
        negative = (1 - self.focal_alpha) * probabilities**self.focal_gamma * F.softplus(logits)
        return positive - negative
