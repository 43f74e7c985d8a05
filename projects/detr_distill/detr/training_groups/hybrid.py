"""H-DETR (2207.13080): a one-to-many branch of queries.

Letters: B images, Q queries, G objects.
"""

from __future__ import annotations

import dataclasses

from detectron2.config import CfgNode, configurable
from torch import nn

from ...errors import ConfigError
from ...registry import QUERIES_REGISTRY, TRAINING_GROUP_REGISTRY, look_up
from ...structures import GroundTruth, Memory, QueryGroup
from .group_detr import _check_weight


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

    def forward(self, memory: Memory, own: QueryGroup, targets: GroundTruth) -> list[QueryGroup]:
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
