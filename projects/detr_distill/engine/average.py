"""The moving average of a detector over its training, which is evaluated and exported in its place."""

from __future__ import annotations

import copy

from detectron2.config import CfgNode
from torch import nn

from ..averaging import MovingAverage
from ..checkpoint.export import undistributed
from ..config.keys import Key, declare
from ..config.ranges import Range
from ..protocols import student_in

NODE = "SOLVER.EMA"

declare(
    __name__,
    {
        f"{NODE}.ENABLED": Key(
            False, "the student's exponential moving average is evaluated, and exported, in the student's place"
        ),
        f"{NODE}.DECAY": Key(0.9997, "of that average, a step", Range(0, below=1)),
        f"{NODE}.RAMP_UP": Key(True, "at step n the decay is at most `(1 + n) / (10 + n)`"),
    },
)


def build_average(cfg: CfgNode, model: nn.Module) -> MovingAverage | None:
    """The average of a model's detector, a copy in eval mode without gradient; None where none is asked for."""
    node = cfg.SOLVER.EMA
    if not node.ENABLED:
        return None
    own = undistributed(model)
    detector = student_in(own) or own
    average = copy.deepcopy(detector).eval().requires_grad_(False)
    return MovingAverage(average, detector, node.DECAY, node.RAMP_UP)
