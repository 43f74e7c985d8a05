"""Further query groups of a training step, gone at inference: Group DETR (2207.13085) and H-DETR (2207.13080).

Letters: B images, Q queries, G objects, K groups.
"""

from __future__ import annotations

import dataclasses

from detectron2.config import CfgNode, configurable
from torch import nn

from ..errors import ConfigError
from ..registry import QUERIES_REGISTRY, TRAINING_GROUP_REGISTRY, look_up
from ..structures import Memory, QueryGroup, Targets


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

    def forward(self, memory: Memory, own: QueryGroup, targets: Targets) -> list[QueryGroup]:
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


@TRAINING_GROUP_REGISTRY.register()
class HybridQueries(nn.Module):
    """H-DETR's one-to-many branch (2207.13080): further queries that meet every object several times.

    A one-to-one assignment to objects that are repeated gives each of them as many queries; its loss is divided by the
    number of repeated objects and added with a weight, lambda [P]. The branch and the detector's own group do not see
    each other [P]. With two-stage queries it takes the encoder's next-best detections [C], otherwise queries of its own
    of the detector's kind.

    Args:
        queries: of the branch, a module as in :func:`further_queries`; None adds no group. repeats: of every object.
        loss_weight: lambda.
    """

    @configurable
    def __init__(self, *, queries: nn.Module | None, repeats: int, loss_weight: float):
        super().__init__()
        self.queries, self.repeats, self.loss_weight = queries, repeats, loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.DETR.HYBRID_QUERIES
        _check_weight("HYBRID_QUERIES", node.LOSS_WEIGHT)
        for key in ("NUM_QUERIES", "REPEATS"):
            if node[key] < 1:
                raise ConfigError(f"MODEL.DETR.HYBRID_QUERIES.{key} is {node[key]}. Give 1 or more.")
        return {
            "queries": further_queries(cfg, node.NUM_QUERIES) if node.LOSS_WEIGHT else None,
            "repeats": node.REPEATS,
            "loss_weight": node.LOSS_WEIGHT,
        }

    def forward(self, memory: Memory, own: QueryGroup, targets: Targets) -> list[QueryGroup]:
        """The group ``hybrid``, whose targets are the objects, each ``repeats`` times."""
        if self.queries is None:
            return []
        group = self.queries(memory)
        repeated = targets.repeat(self.repeats)
        return [dataclasses.replace(group, name="hybrid", targets=repeated, loss_weight=self.loss_weight)]


def further_queries(cfg: CfgNode, count: int) -> nn.Module:
    """A module that gives ``count`` queries beside the detector's own, of their kind.

    Queries that the encoder chooses say themselves which come next, in a class method ``further``; of any other kind
    they are a second instance of the class.
    """
    queries = look_up(QUERIES_REGISTRY, cfg.MODEL.DETR.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")
    if hasattr(queries, "further"):
        return queries.further(cfg, count)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_QUERIES = count
    try:
        return queries(cfg)
    except ConfigError as error:
        raise ConfigError(f"MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES is {count}, which will not do: {error}") from error


def _check_weight(node: str, weight: float) -> None:
    if weight < 0:
        raise ConfigError(f"MODEL.DETR.{node}.LOSS_WEIGHT is {weight}. Give 0, which adds no group, or more.")
