"""Group DETR (2207.13085): groups of queries beside the detector's own.

Letters: B images, Q queries, K groups.
"""

from __future__ import annotations

import dataclasses

from detectron2.config import configurable
from torch import nn

from ...errors import ConfigError
from ...registry import QUERIES_REGISTRY, TRAINING_GROUP_REGISTRY, look_up
from ...structures import GroundTruth, Memory, QueryGroup


@TRAINING_GROUP_REGISTRY.register()
class GroupQueries(nn.Module):
    """Group DETR (2207.13085): K - 1 groups beside the detector's own, each like it, none seeing another.

    Every group has queries of its own, the same decoder, and its own one-to-one assignment [P]. With two-stage queries
    it also has an encoder head of its own, which chooses them and is supervised like the detector's [C: LW-DETR of the
    same authors]. The losses are the mean over all groups, the detector's own included [C]; weights are ours [R]::

        L = (L_own + w * sum of L_k) / (1 + w * (K - 1))          combine "mean"
        L = L_own + w * sum of L_k                                 combine "sum"

    Args:
        queries: of each further group: modules like the detector's own queries.
        loss_weight: w; 0 adds no group. combine: "mean" or "sum".
    """

    @configurable
    def __init__(self, *, queries: list[nn.Module], loss_weight: float, combine: str):
        super().__init__()
        if combine not in ("mean", "sum"):
            raise ConfigError(f"MODEL.DETR.GROUP_QUERIES.COMBINE is '{combine}'. Known: 'mean', 'sum'.")
        self.queries = nn.ModuleList(queries)
        total = 1 + loss_weight * len(queries) if combine == "mean" else 1.0
        self.own_weight, self.loss_weight = 1 / total, loss_weight / total

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR.GROUP_QUERIES
        _check_weight("GROUP_QUERIES", node.LOSS_WEIGHT)
        if node.NUM_GROUPS < 2:
            raise ConfigError(
                f"MODEL.DETR.GROUP_QUERIES.NUM_GROUPS is {node.NUM_GROUPS}; it counts the detector's own group too. "
                "Give 2 or more, or remove GroupQueries from MODEL.DETR.TRAINING_GROUPS."
            )
        further = node.NUM_GROUPS - 1 if node.LOSS_WEIGHT else 0
        build = look_up(QUERIES_REGISTRY, cfg.MODEL.DETR.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")
        return {
            "queries": [build(cfg) for _ in range(further)],
            "loss_weight": node.LOSS_WEIGHT,
            "combine": node.COMBINE,
        }

    def forward(self, memory: Memory, own: QueryGroup, targets: GroundTruth) -> list[QueryGroup]:
        """The detector's own group, weighted anew, and the groups ``group_1``, ``group_2``, ..."""
        groups = [dataclasses.replace(own, loss_weight=own.loss_weight * self.own_weight)]
        for number, queries in enumerate(self.queries, start=1):
            # Two-stage queries leave their detections in the memory, where the detector's own stay.
            view = dataclasses.replace(memory, proposals=None)
            groups.append(
                dataclasses.replace(
                    queries(view), name=f"group_{number}", loss_weight=self.loss_weight, proposals=view.proposals
                )
            )
        return groups


def _check_weight(node: str, weight: float) -> None:
    if weight < 0:
        raise ConfigError(f"MODEL.DETR.{node}.LOSS_WEIGHT is {weight}. Give 0, which adds no group, or more.")
