"""D-FINE's losses of the distributions of a box's edges.

Letters: L layers, B images, Q queries, M pairs (padded), N + 1 bins.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor

from ..config.keys import key
from ..config.ranges import NOT_NEGATIVE, POSITIVE
from ..detr.boxes import intersection_over_union, to_corners
from ..detr.supervision.criterion import Supervised
from ..plugin import Plugin
from ..structures import EdgeDistributions, Pairs

EDGES = 4


class DistributionLoss(Plugin, node="MODEL.TRANSFORMERS.DISTRIBUTION"):
    """Fine-grained localisation and the decoder's distillation of itself, D-FINE (2410.13842) [P], form of [C].

    ``fgl_weight * FGL`` on every layer: the cross-entropy of the two bins beside the object's edge, weighted by how
    near it is to each and by the predicted box's IoU, over matched pairs, divided by the number of objects.
    ``ddf_weight * DDF`` on all layers but the last: the KL divergence to the last layer's distributions, softened,
    over all queries, a matched one weighted by its IoU and another by its score in the last layer; the two means are
    weighted by the roots of how many edges there are of each, an image. The authors take the pairs of all layers
    together; here, as in transformers, each layer has its own. Padding has neither.

    Args:
        bins: (N + 1,), the distance that each bin stands for, in parts of the reference box. scale: of these parts.
    """

    bins: Tensor

    fgl_weight: float = key(0.15, "D-FINE: weight of the distributions' loss at the objects' edges", NOT_NEGATIVE)
    ddf_weight: float = key(1.5, "D-FINE: weight of the inner layers' divergence from the last", NOT_NEGATIVE)
    temperature: float = key(5.0, "of that divergence", POSITIVE)

    @configurable
    def __init__(self, *, bins: Tensor, scale: float, **settings: Any):
        super().__init__(**settings)
        self.scale = scale
        self.register_buffer("bins", bins, persistent=False)

    def forward(self, entry: Supervised, num_layers: int) -> dict[str, Tensor]:
        """The weighted losses of a supervised group.

        Args:
            num_layers: last layers that have a detection loss.

        Returns:
            ``loss_{fgl,ddf}[_group][_layer]``: scalars to sum; no layer suffix on the last layer.
        """
        edges, pairs = entry.output.edges, entry.pairs.slice_layers(slice(-num_layers, None))
        assert edges is not None
        edges = edges.map(lambda values: values[-num_layers:].float())
        boxes = entry.output.boxes[-num_layers:].float()
        with torch.autocast(boxes.device.type, enabled=False):
            goal = pairs.take_target(entry.targets.boxes.unsqueeze(0).expand(num_layers, -1, -1, -1))
            iou = intersection_over_union(pairs.take_query(boxes), goal)
            terms = {"fgl": self.fgl_weight * self._localisation(edges, pairs, goal, iou) / entry.targets.num_objects}
            if num_layers > 1 and self.ddf_weight:
                terms["ddf"] = self.ddf_weight * self._self_distillation(entry, edges, pairs, iou)
        group = entry.group
        suffix = "" if group.name == "own" else f"_{group.name}"
        return {
            f"loss_{name}{suffix}" + ("" if layer == num_layers - 1 else f"_{layer}"): group.loss_weight * value
            for name, values in terms.items()
            for layer, value in enumerate(values.unbind())
        }

    def _localisation(self, edges: EdgeDistributions, pairs: Pairs, goal: Tensor, iou: Tensor) -> Tensor:
        """(L,), summed over pairs. ``goal``: (L, B, M, 4), boxes of the objects. ``iou``: (L, B, M)."""
        chosen = pairs.take_query(edges.logits.flatten(-2)).unflatten(-1, (EDGES, -1)).log_softmax(-1)
        left, share = self.bins_around(pairs.take_query(edges.references.detach()), goal)
        both = chosen.gather(-1, torch.stack([left, left + 1], dim=-1))  # (L, B, M, 4, 2)
        loss = -torch.lerp(both[..., 0], both[..., 1], share).sum(-1)
        return (loss * iou * pairs.weight).sum((1, 2))

    @torch.no_grad()
    def bins_around(self, reference: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """The bin before each edge of the boxes ``goal``, and how much of the way to the next bin the edge lies.

        Args:
            reference, goal: (..., 4).

        Returns:
            (..., 4) long, 0 to N - 1; (..., 4) in [0, 1], held there for an edge beyond the bins.
        """
        centre, size = reference.float().split(2, dim=-1)
        low, high = to_corners(goal.float()).split(2, dim=-1)
        unit = torch.cat([size, size], dim=-1) / self.scale + 1e-16
        distance = torch.cat([centre - low, high - centre], dim=-1) / unit - self.scale / 2
        left = (torch.searchsorted(self.bins, distance.contiguous(), right=True) - 1).clamp(0, len(self.bins) - 2)
        start, end = self.bins[left], self.bins[left + 1]
        return left, ((distance - start) / (end - start)).clamp(0, 1)

    def _self_distillation(self, entry: Supervised, edges: EdgeDistributions, pairs: Pairs, iou: Tensor) -> Tensor:
        """(L - 1,), of the inner layers. ``iou``: (L, B, M)."""
        queries = edges.logits.shape[2]
        inner = pairs.slice_layers(slice(-1))
        is_matched = inner.has_query(queries)
        score = entry.output.logits[-1].detach().float().sigmoid().amax(-1)
        weight = torch.where(is_matched > 0, inner.to_queries(iou[:-1], queries), score)
        soft = (edges.logits / self.temperature).log_softmax(-1)
        last = soft[-1:].detach()
        divergence = F.kl_div(soft[:-1], last, reduction="none", log_target=True).sum((-2, -1))
        values = self.temperature**2 * weight * divergence
        exists = 1.0 if entry.group.padding is None else (~entry.group.padding).float()
        total, roots = values.new_zeros(len(values)), values.new_zeros(len(values))
        for part in (is_matched * exists, (1 - is_matched) * exists):
            count = EDGES * part.sum((1, 2))
            root = (count / part.shape[1]).sqrt()
            total = total + root * (values * part).sum((1, 2)) / count.clamp(min=1)
            roots = roots + root
        return total / roots.clamp(min=torch.finfo(roots.dtype).tiny)
