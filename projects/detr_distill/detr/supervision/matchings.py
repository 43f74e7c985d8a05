"""The ledger of a step's matchings: add a cost and keep the handle, solve once, read the handle."""

from __future__ import annotations

from ...structures import Pairs
from .assignment import Cost
from .solver import solve


class Matching:
    """A matching that is solved with all others of the step.

    Args:
        cost: to be solved.
    """

    def __init__(self, cost: Cost):
        self.cost = cost
        self._pairs: Pairs | None = None

    @property
    def pairs(self) -> Pairs:
        """The solution.

        Raises:
            RuntimeError: the ledger has not been solved.
        """
        if self._pairs is None:
            raise RuntimeError(f"The matching '{self.cost.name}' is read before Matchings.solve() was called.")
        return self._pairs


class Matchings:
    """All matchings of a step, so that the device is read at most once for all of them.

    Args:
        solver: see solver.py.
    """

    def __init__(self, solver: str = "auto") -> None:
        self._solver = solver
        self._open: list[Matching] = []

    def add(self, cost: Cost) -> Matching:
        """The handle that has the pairs after :meth:`solve`."""
        matching = Matching(cost)
        self._open.append(matching)
        return matching

    def solve(self) -> None:
        """Solves what was added since the last call; see :func:`solver.solve` for the errors."""
        for matching, pairs in zip(self._open, solve([m.cost for m in self._open], self._solver), strict=True):
            matching._pairs = pairs
        self._open = []
