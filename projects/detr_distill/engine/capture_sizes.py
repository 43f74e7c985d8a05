"""The padded sizes of captured steps, and what keeps a model's steps from being captured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.export import undistributed
from ..config.ranges import COUNT
from ..detr import DetrDetector
from ..distill import DistillDetector
from ..distill.teachers import NoTeacher
from ..distributed import count_processes
from ..errors import ConfigError
from ..protocols import student_in

KEY = "SOLVER.CAPTURE_SIZES"
Sizes = tuple[tuple[int, int], ...]


def read_sizes(cfg: CfgNode, model: nn.Module) -> Sizes:
    """``SOLVER.CAPTURE_SIZES``, the smallest first.

    Raises:
        ConfigError: none, something else than pairs, or one that the backbone's stride does not divide; or the
            matchings are to be solved on the host.
    """
    solver = cfg.MODEL.DETR.MATCHER.SOLVER
    if solver == "scipy":
        raise ConfigError(
            'SOLVER.CAPTURE is True and MODEL.DETR.MATCHER.SOLVER "scipy", which reads the device in the middle of a '
            'step. Set MODEL.DETR.MATCHER.SOLVER "auto", or SOLVER.CAPTURE False.'
        )
    if not cfg.SOLVER.CAPTURE_SIZES:
        raise ConfigError(
            f"SOLVER.CAPTURE is True and {KEY} is empty. Give [height, width] pairs, or SOLVER.CAPTURE False."
        )
    sizes = []
    for pair in cfg.SOLVER.CAPTURE_SIZES:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f"{KEY} holds {pair!r}. Give [height, width] pairs in pixels, such as [[800, 1088]].")
        for side in pair:
            COUNT.check(f"A side in {KEY}", side)
        sizes.append((pair[0], pair[1]))
    stride = _stride(model)
    for size in sizes:
        if any(side % stride for side in size):
            fitting = [-(-side // stride) * stride for side in size]
            raise ConfigError(
                f"{KEY} holds {list(size)}, and the backbone works in cells of {stride} pixels. Give multiples of "
                f"{stride}, such as {fitting}."
            )
    return tuple(sorted(set(sizes), key=math.prod))


def choose_size(images: Sequence[tuple[int, int]], sizes: Sizes) -> tuple[int, int]:
    """The smallest size that holds images of some (height, width).

    Raises:
        ConfigError: none does.
    """
    height, width = (max(sides) for sides in zip(*images, strict=True))
    for size in sizes:
        if height <= size[0] and width <= size[1]:
            return size
    raise ConfigError(
        f"{KEY} is {[list(size) for size in sizes]}, and a batch of this run is {height} x {width} pixels. Add a size "
        "that holds it, or lower INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN."
    )


def find_obstacle(model: nn.Module, device_type: str) -> str:
    """Why no step of a model can be captured, in words; empty where nothing is known to speak against it."""
    model = undistributed(model)
    if device_type != "cuda":
        return f"graphs need CUDA and the model is on {device_type}"
    if count_processes() > 1:
        return "several processes exchange the divisors of their losses within the step"
    detector = student_in(model) or model
    if not isinstance(detector, DetrDetector):
        return f"{type(detector).__name__} decides on the host what it computes"
    if isinstance(model, DistillDetector):
        teacher = model.teacher
        if not isinstance(teacher, NoTeacher) and not isinstance(teacher.detector, DetrDetector):
            return f"MODEL.DISTILL.TEACHER.NAME {type(teacher).__name__} is no DETR of this package"
        if not model.schedule.is_constant:
            return "MODEL.DISTILL.SCHEDULE changes the step with the iteration"
        if model.balance is not None:
            return "MODEL.DISTILL.BALANCE changes the step with the iteration"
    return ""


def _stride(model: nn.Module) -> int:
    """What padded sides must be a multiple of, in pixels."""
    model = undistributed(model)
    detector = student_in(model) or model
    if not isinstance(detector, DetrDetector):
        return 1
    strides = [shape.stride for shape in detector.backbone.output_shape().values() if shape.stride]
    return math.lcm(detector.size_divisibility, *strides)
