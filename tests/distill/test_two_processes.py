"""Two processes compute what one computes of both their images, for a recipe of every family."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from helpers.distill.recipe_processes import RECIPES, run_recipe, work


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return torch.load(folder / "results.pth")


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(of_two, name):
    losses, gradient = run_recipe(name, slice(None), 1.0)
    found, found_gradient = of_two[name]
    assert losses.keys() == found.keys()
    for key, value in losses.items():
        assert torch.allclose(found[key], value, rtol=1e-5, atol=1e-7), (key, found[key].item(), value.item())
    # Units at the kink of their ReLU may fall on either side.
    assert (found_gradient - gradient).norm() < 2e-3 * gradient.norm()
