"""H-DETR (2207.13080): a one-to-many branch of queries.

Letters: B images, Q queries, G objects.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from detectron2.config import CfgNode, configurable

from ...config.keys import key
from ...config.ranges import COUNT, NOT_NEGATIVE
from ...errors import ConfigError
from ...registry import QUERIES_REGISTRY, TRAINING_GROUP_REGISTRY, look_up
from ...structures import GroundTruth, Memory, QueryGroup
from ..queries.base import Queries
from .base import TrainingGroup


@TRAINING_GROUP_REGISTRY.register()
class HybridQueries(TrainingGroup):
    """H-DETR's one-to-many branch (2207.13080): extra queries that meet every object several times.

    A one-to-one assignment to objects that are repeated gives each of them as many queries; its loss is divided by the
    number of repeated objects and added with a weight, lambda [P]. The branch and the detector's own group do not see
    each other [P]. With two-stage queries it takes the encoder's next-best detections [C], otherwise queries of its own
    of the detector's kind: queries say themselves which come next, see :meth:`Queries.extra`.

    Args:
        queries: of the branch; None adds no group.

    Attributes:
        num_queries: of the branch, of a configuration. repeats: of every object. loss_weight: lambda.
    """

    num_queries: int = key(
        1500,
        "`HybridQueries`: queries of the one-to-many branch; with two-stage queries the encoder's next-best detections",
        COUNT,
    )
    repeats: int = key(6, "how many queries of the branch every object is given", COUNT)
    loss_weight: float = key(1.0, "weight of the branch's loss; 0 adds no branch", NOT_NEGATIVE)

    @configurable
    def __init__(self, *, queries: Queries | None, **settings: Any):
        super().__init__(**settings)
        self.queries = queries

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = cls.read_keys(cfg)
        queries = _extra_queries(cfg, settings["num_queries"]) if settings["loss_weight"] else None
        return {**settings, "queries": queries}

    def forward(self, memory: Memory, own: QueryGroup, ground_truth: GroundTruth) -> list[QueryGroup]:
        """The group ``hybrid``, whose targets are the objects, each ``repeats`` times."""
        if self.queries is None:
            return []
        group = self.queries(memory, own)
        repeated = ground_truth.repeat(self.repeats)
        return [dataclasses.replace(group, name="hybrid", targets=repeated, loss_weight=self.loss_weight)]


def _extra_queries(cfg: CfgNode, count: int) -> Queries:
    queries = look_up(QUERIES_REGISTRY, cfg.MODEL.DETR.QUERIES.NAME, "MODEL.DETR.QUERIES.NAME")
    try:
        return queries.extra(cfg, count)
    except ConfigError as error:
        raise ConfigError(f"MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES is {count}, which will not do: {error}") from error
