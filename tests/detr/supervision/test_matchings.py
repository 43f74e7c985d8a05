"""The ledger of a step's matchings: a cost goes in, a handle comes out, and it has pairs once the ledger is solved."""

from __future__ import annotations

from detr_distill.detr.supervision.assignment import Cost, solve_assignments
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.errors import NonFiniteError

import pytest
import torch
from helpers.host_reads import host_reads


def random_cost(name: str, layers: int = 2, counts=(3, 1), queries: int = 5, seed: int = 0) -> Cost:
    generator = torch.Generator().manual_seed(seed)
    return Cost(name, torch.randn(layers, len(counts), queries, max(counts), generator=generator), list(counts))


def same(first, second) -> bool:
    return all(torch.equal(vars(first)[name], vars(second)[name]) for name in ("query", "target", "weight"))


def test_a_handle_has_the_solution_of_its_own_cost():
    """Whatever was added before and after it, and in whatever order the handles are read."""
    costs = [random_cost("a"), random_cost("b", layers=1, counts=(0, 4), queries=3, seed=1), random_cost("c", seed=2)]
    matchings = Matchings()
    handles = [matchings.add(cost) for cost in costs]
    matchings.solve()
    for place in (2, 0, 1):
        (expected,) = solve_assignments([costs[place]])
        assert handles[place].cost is costs[place] and same(handles[place].pairs, expected)
    assert not same(handles[0].pairs, handles[2].pairs)


def test_a_handle_read_too_early_names_its_matching():
    handle = Matchings().add(random_cost("ground truth, group 'own'"))
    with pytest.raises(RuntimeError, match=r"'ground truth, group 'own'' is read before Matchings\.solve\(\)"):
        handle.pairs  # noqa: B018


def test_what_is_added_later_is_solved_later():
    """A second call solves the new matchings alone and leaves the first pairs as they are."""
    matchings = Matchings()
    first = matchings.add(random_cost("first"))
    matchings.solve()
    pairs = first.pairs
    second = matchings.add(random_cost("second", seed=1))
    with pytest.raises(RuntimeError, match="'second'"):
        second.pairs  # noqa: B018
    matchings.solve()
    assert first.pairs is pairs
    (expected,) = solve_assignments([random_cost("second", seed=1)])
    assert same(second.pairs, expected)


def test_nothing_to_solve():
    """No cost costs no read of the device; a batch without objects has matchings without pairs."""
    with host_reads() as reads:
        Matchings().solve()
    assert not reads
    matchings = Matchings()
    handle = matchings.add(random_cost("no objects", counts=(0, 0)))
    matchings.solve()
    assert handle.pairs.query.shape == (2, 2, 0)


def test_all_matchings_are_read_at_once():
    matchings = Matchings()
    for seed in range(4):
        matchings.add(random_cost(str(seed), seed=seed))
    with host_reads() as reads:
        matchings.solve()
    assert reads == ["cpu"]


def test_a_cost_that_is_not_finite_names_its_matching():
    matchings = Matchings()
    matchings.add(random_cost("sound"))
    broken = random_cost("student and teacher predictions")
    broken.values[1, 0, 2, 1] = float("nan")
    matchings.add(broken)
    with pytest.raises(NonFiniteError, match="'student and teacher predictions' of decoder layer 1 and image 0"):
        matchings.solve()
