"""How long a run trains, and when it evaluates and saves, whatever the size of its data."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from ...config.ranges import POSITIVE

EPOCHS = 50.0  # as of DETRs on COCO; small sets may need more
LAST_PART = 0.8  # of the run, after which the learning rate drops where the detector's schedule has steps
WARM_UP = 0.05  # of the run, where the detector's schedule has a warm-up
PARTS = 10  # evaluations and checkpoints of a run


def epochs_keys(base: CfgNode, epochs: float | None, opts: dict[str, Any]) -> dict[str, Any]:
    """Keys of a run of some epochs or, where the command line gives ``SOLVER.MAX_ITER``, of as many iterations.

    Args:
        base: the detector's configuration, whose schedule is that of COCO. epochs: None for the default.
        opts: the keys of the command line.

    Raises:
        ConfigError: the number of epochs is not above 0.
    """
    solver = base.SOLVER
    steps, warms_up = bool(solver.STEPS or solver.EPOCH_STEPS), solver.WARMUP_ITERS > 0 or solver.WARMUP_EPOCHS > 0
    if epochs is None and "SOLVER.MAX_ITER" in opts:
        length = opts["SOLVER.MAX_ITER"]
        return {
            "SOLVER.EPOCHS": 0.0,
            "SOLVER.EPOCH_STEPS": [],
            "SOLVER.WARMUP_EPOCHS": -1.0,
            "SOLVER.STEPS": [round(LAST_PART * length)] if steps else [],
            "SOLVER.WARMUP_ITERS": round(WARM_UP * length) if warms_up else 0,
            "TEST.EVAL_EPOCHS": 0.0,
            "TEST.EVAL_PERIOD": max(1, round(length / PARTS)),
        }
    epochs = opts.get("SOLVER.EPOCHS", EPOCHS) if epochs is None else epochs
    POSITIVE.check("--epochs", epochs)
    return {
        "SOLVER.EPOCHS": float(epochs),
        "SOLVER.EPOCH_STEPS": [round(LAST_PART * epochs, 3)] if steps else [],
        "SOLVER.WARMUP_EPOCHS": round(WARM_UP * epochs, 3) if warms_up else 0.0,
        "TEST.EVAL_EPOCHS": round(max(1.0, epochs / PARTS), 3),
    }


def checkpoint_period(iterations: int, most: int) -> int:
    """Iterations between two checkpoints of a run of so many, no more than ``most``."""
    return max(1, min(iterations // PARTS, most))
