"""A run's length in passes over its training images instead of iterations."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from ...config.keys import Key, declare
from ...config.ranges import NOT_NEGATIVE, Range
from ...data.checks import check_set
from ...errors import ConfigError

declare(
    __name__,
    {
        "SOLVER.EPOCHS": Key(
            0.0,
            "passes over the training images with labels, in place of `SOLVER.MAX_ITER`, which follows from it; 0: "
            "`SOLVER.MAX_ITER` counts",
            NOT_NEGATIVE,
        ),
        "SOLVER.EPOCH_STEPS": Key(
            (),
            "with `SOLVER.EPOCHS`: epochs after which the learning rate drops, in place of `SOLVER.STEPS`",
            Range(above=0),
        ),
        "SOLVER.WARMUP_EPOCHS": Key(
            -1.0, "with `SOLVER.EPOCHS`: in place of `SOLVER.WARMUP_ITERS`; -1: that counts", Range(-1)
        ),
        "TEST.EVAL_EPOCHS": Key(
            0.0, "with `SOLVER.EPOCHS`: epochs between two evaluations, in place of `TEST.EVAL_PERIOD`", NOT_NEGATIVE
        ),
    },
)


def in_iterations(cfg: CfgNode) -> CfgNode:
    """A configuration in which everything that is given in epochs stands in iterations; itself where nothing is.

    Applied twice it changes nothing more.

    Raises:
        ConfigError: other keys count in epochs and ``SOLVER.EPOCHS`` is 0, or the warm-up is longer.
        DataError: a training set cannot be read.
    """
    solver, test = cfg.SOLVER, cfg.TEST
    if not solver.EPOCHS:
        if solver.EPOCH_STEPS or solver.WARMUP_EPOCHS >= 0 or test.EVAL_EPOCHS:
            raise ConfigError(
                f"SOLVER.EPOCHS is 0 beside SOLVER.EPOCH_STEPS {list(solver.EPOCH_STEPS)}, SOLVER.WARMUP_EPOCHS "
                f"{solver.WARMUP_EPOCHS}, TEST.EVAL_EPOCHS {test.EVAL_EPOCHS}, which count with it alone. Set it, or "
                "give these in iterations (SOLVER.STEPS, SOLVER.WARMUP_ITERS, TEST.EVAL_PERIOD)."
            )
        return cfg
    if solver.WARMUP_EPOCHS > solver.EPOCHS:
        raise ConfigError(
            f"SOLVER.WARMUP_EPOCHS is {solver.WARMUP_EPOCHS} and SOLVER.EPOCHS {solver.EPOCHS}: the run would end "
            "within the warm-up, before it reaches its learning rate. Give fewer epochs of warm-up."
        )
    epoch = training_images(cfg) / (solver.IMS_PER_BATCH * solver.ACCUMULATE)
    result = cfg.clone()
    result.defrost()
    result.SOLVER.MAX_ITER = max(1, math.ceil(solver.EPOCHS * epoch))
    if solver.EPOCH_STEPS:
        result.SOLVER.STEPS = tuple(math.ceil(step * epoch) for step in solver.EPOCH_STEPS)
    if solver.WARMUP_EPOCHS >= 0:
        result.SOLVER.WARMUP_ITERS = math.ceil(solver.WARMUP_EPOCHS * epoch)
    if test.EVAL_EPOCHS:
        result.TEST.EVAL_PERIOD = max(1, math.ceil(test.EVAL_EPOCHS * epoch))
    if cfg.is_frozen():
        result.freeze()
    return result


def schedule_warnings(cfg: CfgNode) -> list[str]:
    """What of a schedule will not come about: the rate that a warm-up as long as the run never reaches.

    Args:
        cfg: of :func:`in_iterations`.
    """
    solver = cfg.SOLVER
    if solver.WARMUP_ITERS < solver.MAX_ITER or solver.WARMUP_FACTOR == 1:
        return []
    key = "SOLVER.WARMUP_EPOCHS" if solver.EPOCHS and solver.WARMUP_EPOCHS >= 0 else "SOLVER.WARMUP_ITERS"
    return [
        f"The warm-up takes {solver.WARMUP_ITERS} iterations and the run {solver.MAX_ITER}, so the learning rate never "
        f"reaches SOLVER.BASE_LR {solver.BASE_LR}. Give less than the run has in {key}."
    ]


def training_images(cfg: CfgNode) -> int:
    """Images of an epoch: those of the training sets whose labels are used, or the subset that is drawn of them."""
    sets = [check_set(cfg, name, "DATASETS.TRAIN") for name in cfg.DATASETS.TRAIN]
    empty = sum(found.without for found in sets) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else 0
    images = sum(found.images for found in sets) - empty
    if cfg.DATASETS.LABELED_SHARE != 1:
        images = max(1, round(cfg.DATASETS.LABELED_SHARE * images))
    subset = cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler"
    return max(1, int(images * cfg.DATALOADER.RANDOM_SUBSET_RATIO)) if subset else images
