"""Where a box's four edges may lie, as distributions (D-FINE).

Letters: L decoder layers, B images, Q queries, N + 1 bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class EdgeDistributions:
    """Of every decoder layer: how far the left, upper, right and lower edges lie from a box that all layers refine.

    Attributes:
        logits: (L, B, Q, 4, N + 1), softmax over the last axis. references: (L, B, Q, 4), that box.
    """

    logits: Tensor
    references: Tensor

    def map(self, choose: Callable[[Tensor], Tensor]) -> EdgeDistributions:
        """Those that a function of (L, B, Q, ...) chooses."""
        return EdgeDistributions(choose(self.logits), choose(self.references))
