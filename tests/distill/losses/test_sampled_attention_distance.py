"""The two distances between sampled points: closed forms, what they do not depend on, and gradients."""

from __future__ import annotations

import math

from detr_distill.distill.losses.sampled_points import NEAR, energy_coefficient, jensen_shannon, rasterise

import pytest
import torch
from helpers.distill.sampled_points import build_loss, measure_of, random_points


def energy_by_pairs(goal_places, goal_weights, places, weights):
    """The energy coefficient by its definition, every pair of points."""

    def mean_distance(a, b, first, second):
        return (torch.cdist(a, b) * first.unsqueeze(-1) * second.unsqueeze(-2)).sum((-2, -1))

    between = mean_distance(goal_places, places, goal_weights, weights)
    within = mean_distance(goal_places, goal_places, goal_weights, goal_weights) + mean_distance(
        places, places, weights, weights
    )
    return (between - within / 2) / (between + NEAR)


def test_energy_of_many_directions_is_its_definition():
    goal, pred = random_points(3, 5, 6), random_points(3, 5, 9, seed=1)
    exact = energy_by_pairs(*goal, *pred)
    assert torch.allclose(energy_coefficient(*goal, *pred, directions=400), exact, atol=1e-4)
    assert torch.allclose(energy_coefficient(*goal, *pred, directions=4), exact, atol=0.05)
    assert exact.min() > 0 and exact.max() < 1


def test_energy_of_two_places_by_hand():
    """A place at distance d along x from one on a line: |F - G| is 1 between the two projections."""
    one = torch.ones(1)
    for distance in (0.001, 0.2, 3.0):
        found = energy_coefficient(torch.tensor([[0.5, 0.5]]), one, torch.tensor([[0.5 + distance, 0.5]]), one, 2)
        assert math.isclose(found, (distance / 2) / (distance / 2 + NEAR * 2 / math.pi), rel_tol=1e-4)
    # Half of the weight at the goal, half at d: F - G is 1/2 between them and F + G - 2FG is 1/2.
    places, half = torch.tensor([[0.5, 0.5], [0.9, 0.5]]), torch.tensor([0.5, 0.5])
    found = energy_coefficient(places[:1], one, places, half, 2)
    assert math.isclose(found, (0.25 * 0.2) / (0.5 * 0.2 + NEAR * 2 / math.pi), rel_tol=1e-4)


@pytest.mark.parametrize("distance", ["energy", "js"])
def test_distance_sees_distributions_not_points(distance):
    """Their order, a point in two parts, points without weight: nothing of it counts."""
    measure = measure_of(build_loss(distance=distance))
    goal, (places, weights) = random_points(4, 6), random_points(4, 5, seed=1)
    expected = measure(*goal, places, weights)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(measure(*goal, places[:, order], weights[:, order]), expected)
    split = torch.cat([weights * 0.3, weights * 0.7, torch.zeros(4, 2)], dim=1)
    more = torch.cat([places, places, torch.rand(4, 2, 2, dtype=torch.float64)], dim=1)
    assert torch.allclose(measure(*goal, more, split), expected, atol=1e-6)
    assert measure(places, weights, more, split).abs().max() < 1e-6
    assert torch.allclose(measure(places, weights, *goal), expected, atol=1e-6), "symmetric"


@pytest.mark.parametrize("distance", ["energy", "js"])
def test_gradient_is_right_and_finite_where_both_are_equal(distance):
    measure = measure_of(build_loss(distance=distance, grid_size=5))
    goal, (places, weights) = random_points(2, 4), random_points(2, 3, seed=1)
    assert torch.autograd.gradcheck(
        lambda p, w: measure(*goal, p, w), (places.requires_grad_(), weights.requires_grad_())
    )
    same = torch.full((1, 3, 2), 0.5, requires_grad=True)
    even = torch.full((1, 3), 1 / 3, requires_grad=True)
    measure(same.detach(), even.detach(), same, even).sum().backward()
    assert same.grad.abs().max() < 1 / NEAR and even.grad.isfinite().all()


def test_energy_pulls_a_point_from_any_distance_and_for_any_size():
    goal, one = torch.tensor([[0.2, 0.3]]), torch.ones(1)
    place = torch.tensor([[0.9, 0.8]], requires_grad=True)
    energy_coefficient(goal, one, place, one, 4).backward()
    assert (place.grad > 0).all()
    places, weights = random_points(5, 7, dtype=torch.float64)
    goals, goal_weights = random_points(5, 4, seed=1)
    large = energy_coefficient(goals * 50, goal_weights, places * 50, weights, 4)
    small = energy_coefficient(goals * 5, goal_weights, places * 5, weights, 4)
    assert torch.allclose(large, small, atol=0.02)


def test_raster_by_hand():
    found = rasterise(torch.tensor([[0.5, 0.25], [1.25, 0.5], [3.0, 3.0]]), torch.tensor([0.4, 0.4, 0.2]), 3)
    # A quarter down lies between the first two rows; a quarter beyond the border half of a point is outside.
    expected = torch.tensor([[0, 0.2, 0], [0, 0.2, 0.2], [0, 0, 0]]).flatten()
    assert torch.allclose(found, torch.cat([expected, torch.tensor([0.4])]), atol=1e-6)
    places, weights = random_points(3, 8)
    assert torch.allclose(rasterise(places, weights, 7).sum(-1), torch.ones(3, dtype=torch.float64))


def test_jensen_shannon_by_hand():
    t, p = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    # Half of each is apart, and costs log 2 there.
    assert math.isclose(jensen_shannon(t, p), math.log(2) / 2, rel_tol=1e-5)
    assert math.isclose(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), math.log(2), rel_tol=1e-5)
