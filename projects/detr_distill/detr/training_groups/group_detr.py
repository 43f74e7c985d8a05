"""Group DETR (2207.13085): groups of queries beside the detector's own.

Letters: B images, Q queries, K groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from detectron2.config import CfgNode, configurable

from ...config.keys import key
from ...config.ranges import NOT_NEGATIVE, SEVERAL, Words
from ...registry import QUERIES_REGISTRY, TRAINING_GROUP_REGISTRY, look_up
from ...structures import GroundTruth, Memory, QueryGroup
from ..layers.module_list import ModuleList
from ..queries.base import Queries
from .base import TrainingGroup


@TRAINING_GROUP_REGISTRY.register()
class GroupQueries(TrainingGroup):
    """Group DETR (2207.13085): K - 1 groups beside the detector's own, each like it, none seeing another.

    Every group has queries of its own, the same decoder, and its own one-to-one assignment [P]. With two-stage queries
    it also has an encoder head of its own, which chooses them and is supervised like the detector's [C: LW-DETR of the
    same authors]. The losses are the mean over all groups, the detector's own included [C]; weights are ours [R]::

        L = (L_own + w * sum of L_k) / (1 + w * (K - 1))          combine "mean"
        L = L_own + w * sum of L_k                                 combine "sum"

    Args:
        queries: of each extra group: modules like the detector's own queries.

    Attributes:
        num_groups: K, of a configuration. loss_weight: w; 0 adds no group. combine: "mean" or "sum".
    """

    num_groups: int = key(11, "`GroupQueries`: groups in all, the detector's own included", SEVERAL)
    loss_weight: float = key(1.0, "weight of each extra group's loss; 0 adds no group", NOT_NEGATIVE)
    combine: str = key(
        "mean",
        'the losses of all groups are averaged, the detector\'s own included, or added up (`"sum"`)',
        Words("mean", "sum"),
    )

    @configurable
    def __init__(self, *, queries: list[Queries], **settings: Any):
        super().__init__(**settings)
        self.queries = ModuleList(queries)
        self.total_weight = 1 + self.loss_weight * len(queries) if self.combine == "mean" else 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = cls.read_keys(cfg)
        extra = settings["num_groups"] - 1 if settings["loss_weight"] else 0
        build = look_up(QUERIES_REGISTRY, cfg.MODEL.DETR.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")
        return {**settings, "queries": [build(cfg) for _ in range(extra)]}

    def forward(self, memory: Memory, own: QueryGroup, ground_truth: GroundTruth) -> list[QueryGroup]:
        """The detector's own group, weighted anew, and the groups ``group_1``, ``group_2``, ..."""
        groups = [dataclasses.replace(own, loss_weight=own.loss_weight * (1 / self.total_weight))]
        weight = self.loss_weight / self.total_weight
        for number, queries in enumerate(self.queries, start=1):
            groups.append(dataclasses.replace(queries(memory), name=f"group_{number}", loss_weight=weight))
        return groups
