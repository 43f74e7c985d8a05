"""The steered share of the distillation losses: over the run it is the target, whatever course the losses take."""

from __future__ import annotations

import itertools
import math

from detr_distill.distill.balance import SMOOTHING, ShareBalance
from detr_distill.errors import ConfigError

import pytest
import torch

WIDE = (1e-3, 1e3)


def course(name: str, steps: int, seed: int = 0):
    """Losses of distillation and of detection, step by step, with the noise of batches."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        noise = torch.randn(2, generator=generator).mul(0.2).exp()
        ways = {
            "distillation falls first": (4 * math.exp(-step / 60) + 0.2, 3 * math.exp(-step / 300) + 0.5),
            "detection falls first": (0.4 * math.exp(-step / 400) + 0.1, 8 * math.exp(-step / 50) + 0.5),
            "they rise": (0.1 + step / 100, 2.0),
            "a break": (1.0 if step < steps // 2 else 0.05, 2.0),
        }
        yield torch.tensor(ways[name]) * noise


def steer(balance: ShareBalance, losses, start: int = 0) -> list[float]:
    """The share of each step."""
    shares = []
    for iteration, (distilled, other) in enumerate(losses, start):
        found = balance({"loss_distill": distilled}, {"loss": other}, iteration)["loss_distill"]
        shares.append((found / (found + other)).item())
    return shares


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("distillation falls first", 0.45),
        ("distillation falls first", 0.8),
        ("detection falls first", 0.2),
        ("they rise", 0.45),
        ("a break", 0.45),
    ],
)
def test_the_share_over_the_run_is_the_target(name, target):
    shares = steer(ShareBalance(target, 0, WIDE), course(name, 500))
    assert sum(shares[:200]) / 200 == pytest.approx(target, abs=0.01)
    assert sum(shares) / 500 == pytest.approx(target, abs=0.003)
    assert sum(shares[-50:]) / 50 == pytest.approx(target, abs=0.02), "it is not made up of too much and too little"


def test_the_factor_is_smoother_than_the_losses():
    """It follows their course and not each batch."""
    balance, factors, ratios = ShareBalance(0.45, 0, WIDE), [], []
    for iteration, (distilled, other) in enumerate(course("distillation falls first", 200)):
        balance({"loss_distill": distilled}, {"loss": other}, iteration)
        factors.append(balance.factor.log().item())
        ratios.append((other / distilled).log().item())
    jumps, wanted = (
        [abs(after - before) for before, after in itertools.pairwise(values[100:])] for values in (factors, ratios)
    )
    assert sum(jumps) < 0.15 * sum(wanted)


def test_the_first_steps_share_is_exact_and_the_factor_stays_in_the_end():
    balance = ShareBalance(0.45, iterations=3, bounds=WIDE)
    values = [(2.0, 1.0), (1.0, 3.0), (0.5, 2.0), (9.0, 9.0)]
    losses = [torch.tensor(pair) for pair in values]
    ratio = 0.45 / 0.55
    assert steer(balance, losses[:1]) == pytest.approx([0.45]) and balance.factor.item() == pytest.approx(ratio / 2)
    # Nothing was missed before the second.
    second = steer(balance, losses[1:2], 1)
    assert balance.factor.item() == pytest.approx(ratio * (1 / 2 * 3) ** (1 / 2))
    aim = 0.45 + (0.45 - second[0]) / SMOOTHING
    steer(balance, losses[2:3], 2)
    kept = balance.factor.item()
    assert kept == pytest.approx(aim / (1 - aim) * (1 / 2 * 3 * 4) ** (1 / 3), rel=1e-5)
    steer(balance, losses[3:] * 5, 3)
    assert balance.factor.item() == kept


def test_a_resumed_search_goes_on():
    losses = list(course("they rise", 60))
    whole, first, second = (ShareBalance(0.3, 0, WIDE) for _ in range(3))
    expected = steer(whole, losses)
    before = steer(first, losses[:30])
    second.load_state_dict(first.state_dict())
    assert before + steer(second, losses[30:], 30) == expected


@pytest.mark.parametrize(
    ("iterations", "run", "told"),
    [(0, 0, [100]), (0, 200, [100, 199]), (0, 5, [4]), (3, 5, [2]), (150, 150, [100, 149]), (150, 4, [3])],
)
def test_a_factor_at_its_bound_is_told(iterations, run, told, caplog):
    balance = ShareBalance(0.45, iterations, (1.0, 100.0), run)
    tiny = {"x": torch.tensor(1e-9)}, {"y": torch.ones(())}
    for iteration in range(run or 120):
        assert balance(*tiny, iteration)["x"].item() == pytest.approx(1e-7)
    words = "at iteration {} the factor is 100, a bound of RANGE, and TARGET_SHARE 0.45 is not reached"
    assert [record.getMessage().split(" while")[0] for record in caplog.records] == [
        f"MODEL.DISTILL.BALANCE: {words.format(iteration)}" for iteration in told
    ]


@pytest.mark.parametrize("spoiled", [(math.nan, 2.0), (1.0, math.nan), (math.inf, 2.0), (1.0, math.inf)])
def test_a_step_that_is_no_number_leaves_no_trace(spoiled):
    losses = list(course("they rise", 40))
    plain, other = (ShareBalance(0.3, 0, WIDE) for _ in range(2))
    steer(plain, losses[:20]), steer(other, losses[:20])
    steer(other, [torch.tensor(spoiled)])
    assert steer(other, losses[20:], 20) == steer(plain, losses[20:], 20)


def test_what_could_not_be_reached_is_not_made_good_for_ever():
    """Three hundred steps without anything to distil, as of a detector whose boxes have no area yet."""
    balance = ShareBalance(0.4, 0, WIDE)
    steer(balance, [torch.tensor([0.0, 2.0])] * 300)
    shares = steer(balance, [torch.tensor([1.0, 2.0])] * 400, 300)
    assert max(shares[SMOOTHING:]) < 0.65 and shares[-1] == pytest.approx(0.4, abs=0.01)


def test_bounds_are_two_factors_in_order():
    for bounds in ((1.0,), (2.0, 1.0), (0.0, 1.0)):
        with pytest.raises(ConfigError, match="RANGE"):
            ShareBalance(0.5, 1, bounds)
