"""Distillation of how the queries of an image lie to each other.

Letters: Ls student layers, B images, M pairs, C width of the hidden states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...detr import DetrDetector
from ...errors import ConfigError
from ...registry import LOSS_REGISTRY
from ..divergence import TINY
from ..knowledge import Knowledge
from ..match import Match
from ..matchers.layers import take_layers
from ..students.base import StudentOutput, network_of
from .base import DistillLoss


@LOSS_REGISTRY.register()
class QueryRelationLoss(DistillLoss):
    """``weight * mean |D_s[i, j] - D_t[i, j]|``, D the distances of an image's matched queries from each other.

    Source: DETRDistill (2211.10156, first version) takes the L1 distance of the two matrices of Euclidean distances
    between queries, the student's rows permuted by the matching [P]. Its code has a cross-entropy between matched
    queries in place of it: cosine similarities over a temperature of 0.07, with weight 0.2 [C]. That a query is its
    hidden state, what the distances are measured in, the mean over pairs, that a query's partner is told from others of
    its image, and a projection only where widths differ are reconstructions [R].

    Args:
        kind: "distance" or "contrastive". normalize: of "distance": measured in the image's mean distance, so that
            neither width nor scale of the states counts. temperature: of "contrastive", above 0.
        widths: of the student's and the teacher's hidden states.
    """

    @configurable
    def __init__(
        self,
        *,
        widths: tuple[int, int],
        kind: str = "distance",
        normalize: bool = True,
        temperature: float = 0.07,
        weight: float = 1.0,
        groups: list[str] = (),  # type: ignore[assignment]
        layers: str = "all",
    ):
        super().__init__(key="QUERY_RELATION_LOSS", weight=weight, groups=groups, layers=layers)
        if kind not in ("distance", "contrastive"):
            raise ConfigError(
                f"MODEL.DISTILL.QUERY_RELATION_LOSS.DIVERGENCE is '{kind}'. Known: 'distance', 'contrastive'."
            )
        self.kind, self.normalize, self.temperature = kind, normalize, temperature
        project = kind == "contrastive" and widths[0] != widths[1]
        self.projection = nn.Linear(*widths) if project else nn.Identity()

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.MODEL.DISTILL.QUERY_RELATION_LOSS
        return {
            "widths": (_hidden_width(student), _hidden_width(network_of(teacher))),
            "kind": node.DIVERGENCE,
            "normalize": node.NORMALIZE,
            "temperature": node.TEMPERATURE,
            "weight": node.WEIGHT,
            "groups": list(node.GROUPS),
            "layers": node.LAYERS,
        }

    def terms(self, student: StudentOutput, knowledge: Knowledge, match: Match) -> dict[str, Tensor]:
        """The term ``query_relation``, (Ls,)."""
        output, teacher, pairs = student.outputs[match.student_group], knowledge.output_of(match), match.pairs
        with torch.autocast(output.hidden.device.type, enabled=False):
            states = pairs.take_query(output.hidden.float())
            goals = pairs.take_target(take_layers(teacher.hidden.detach().float(), match.teacher_layer))
            if self.kind == "contrastive":
                value = contrastive(self.projection(states), goals, pairs.weight, self.temperature)
            else:
                value = distance_difference(states, goals, pairs.weight, self.normalize)
        return {"query_relation": value}


def pairwise_distances(states: Tensor) -> Tensor:
    """Euclidean distances (..., M, M) between the rows of (..., M, C), with a gradient of 0 where two rows are equal.

    Written as a product of matrices: a difference for every two rows would be C times as large.
    """
    # Whatever is taken from all rows, their differences stay; the squares that cancel below become smaller.
    states = states - states.detach().mean(-2, keepdim=True)
    squares = states.square().sum(-1)
    squared = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * states @ states.transpose(-2, -1)
    return (squared.clamp(min=0) + TINY).sqrt()


def distance_difference(states: Tensor, goals: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    """Mean over two different pairs of an image of the difference between student's and teacher's distance.

    Args:
        states: (L, B, M, C). goals: (L, B, M, C'), the teacher's. weight: (L, B, M), 0 for padding.
        normalize: each side's distances are divided by their mean in the image.

    Returns:
        (L,), 0 where no image has two pairs.
    """
    others = 1 - torch.eye(weight.shape[-1], device=weight.device)
    both = weight.unsqueeze(-1) * weight.unsqueeze(-2) * others
    own, goal = pairwise_distances(states), pairwise_distances(goals)
    if normalize:
        own, goal = own / _mean_of_image(own, both), goal / _mean_of_image(goal, both)
    return ((own - goal).abs() * both).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)


def contrastive(states: Tensor, goals: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Mean over pairs of ``-log softmax_j(cos(s_i, t_j) / temperature)`` at j = i, over the image's pairs (InfoNCE).

    Args:
        states, goals: (L, B, M, C), row i of one belongs to row i of the other. weight: (L, B, M), 0 for padding.

    Returns:
        (L,), 0 where there is no pair.
    """
    cosine = F.normalize(states, dim=-1) @ F.normalize(goals, dim=-1).transpose(-2, -1)
    padding = (weight == 0).unsqueeze(-2)
    logits = (cosine / temperature).masked_fill(padding, torch.finfo(cosine.dtype).min)
    values = -logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def _mean_of_image(distances: Tensor, both: Tensor) -> Tensor:
    """(L, B, M, M) distances and weights to their weighted mean (L, B, 1, 1)."""
    total, count = ((values * both).sum((-2, -1), keepdim=True) for values in (distances, torch.ones_like(both)))
    return (total / count.clamp(min=1)).clamp(min=TINY)


def _hidden_width(detector: nn.Module) -> int:
    if not isinstance(detector, DetrDetector):
        raise ConfigError(
            "MODEL.DISTILL.LOSSES: QueryRelationLoss compares the hidden states of queries, which a DetrDetector has "
            f"and {type(detector).__name__} has not. Remove it from the list, or choose a DetrDetector."
        )
    return detector.queries.widths[0]  # type: ignore[index, return-value]
