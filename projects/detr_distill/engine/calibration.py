"""Choosing the weight of the distillation loss by its share in the total loss of a run's first iterations."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from ..errors import ConfigError
from .step import DISTILLED_SHARE
from .trainer import DistillTrainer

KEY = "MODEL.DISTILL.FEATURE_LOSS.WEIGHT"


@dataclass
class Probe:
    """One trial: the weight, and the mean share of the distillation losses in the total over its iterations."""

    weight: float
    share: float


def measure_share(cfg: CfgNode, iterations: int, progress: Callable[[int], None] = lambda iteration: None) -> float:
    """Mean of ``distillation losses / total loss`` over the first iterations of a run, which leaves nothing behind.

    Every call starts from the same weights, data order and random numbers: ``SEED`` must be set. The course of the
    learning rate is the whole run's.

    Args:
        cfg: configuration of the run. progress: is told each finished iteration.
    """
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        seed_all_rng(cfg.SEED)
        trainer = DistillTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.model.train()
        shares = []
        with EventStorage() as storage:
            for iteration in range(iterations):
                trainer.iter = trainer._trainer.iter = storage.iter = iteration
                trainer.run_step()
                trainer.scheduler.step()
                shares.append(storage.latest()[DISTILLED_SHARE][0])
                progress(iteration)
    return statistics.fmean(shares)


def calibrate(
    measure: Callable[[float], float], target: float, low: float, high: float, tolerance: float, most_probes: int
) -> tuple[float, list[Probe]]:
    """The weight whose share is the target, by bisection.

    Source: SSSD (2303.05015): binary search on [1, 100] for a mean share of 45 % over the first 1,000 iterations [P].

    Args:
        measure: weight to share; the share grows with the weight. low, high: bounds of the search.
        tolerance: difference of shares that ends the search. most_probes: trials at most.

    Returns:
        The best weight tried, and all trials in order.

    Raises:
        ConfigError: bounds out of order, or a target that is no share.
    """
    if not 0 < target < 1:
        raise ConfigError(f"--target-share is {target}. Give a share between 0 and 1.")
    if not 0 < low < high:
        raise ConfigError(f"--low {low} and --high {high}: give two weights above 0, in order.")
    probes: list[Probe] = []
    for _ in range(most_probes):
        weight = (low + high) / 2
        probes.append(Probe(weight, measure(weight)))
        difference = probes[-1].share - target
        if abs(difference) <= tolerance:
            break
        low, high = (low, weight) if difference > 0 else (weight, high)
    return min(probes, key=lambda probe: abs(probe.share - target)).weight, probes
