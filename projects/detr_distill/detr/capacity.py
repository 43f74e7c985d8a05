"""How many objects of an image a detector can learn from."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from .training_groups.hybrid import HybridQueries


@dataclass(frozen=True)
class ObjectLimit:
    """A number of queries, each of which finds one object at most.

    Attributes:
        key: that sets it. queries: its value. copies: queries that every object is to be given.
        effect: what becomes of further objects.
    """

    key: str
    queries: int
    copies: int
    effect: str

    @property
    def objects(self) -> int:
        return self.queries // self.copies

    def needed(self, objects: int) -> int:
        """Queries for that many objects."""
        return objects * self.copies


def object_limits(cfg: CfgNode) -> list[ObjectLimit]:
    """Of a ``DetrDetector`` and its training groups; denoising queries are as many as there are objects."""
    node = cfg.MODEL.DETR
    limits = [ObjectLimit("MODEL.DETR.NUM_QUERIES", node.NUM_QUERIES, 1, "each query finds one, the rest are missed")]
    hybrid = HybridQueries.read_keys(cfg)
    if "HybridQueries" in node.TRAINING_GROUPS and hybrid["loss_weight"]:
        effect = f"HybridQueries cannot give each of them {hybrid['repeats']} queries"
        key = f"{HybridQueries.node}.NUM_QUERIES"
        limits.append(ObjectLimit(key, hybrid["num_queries"], hybrid["repeats"], effect))
    return limits
