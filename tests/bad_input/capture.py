"""Where matchings are solved, and captured steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.detr.supervision.assignment import Cost
from detr_distill.detr.supervision.solver import solve
from detr_distill.engine.capture_sizes import choose_size, read_sizes
from detr_distill.engine.compiled import compile_backbones

import torch
from detectron2.modeling import build_model
from helpers.builders import small_cfg

from bad_input import Row


def sizes(*found: object, **keys: object) -> Callable[[Path], object]:
    """Reads ``SOLVER.CAPTURE_SIZES`` for a small detector, whose backbone has cells of 8 pixels."""
    cfg = small_cfg(SOLVER__CAPTURE_SIZES=list(found), **keys)
    return lambda folder: read_sizes(cfg, build_model(cfg))


ROWS = [
    Row(
        "solver_without_cuda",
        lambda folder: build_model(small_cfg(MODEL__DETR__MATCHER__SOLVER="device")),
        r'MATCHER.SOLVER is "device", which needs a CUDA device, and MODEL.DEVICE is .cpu.*Set it to "auto" or "scipy"',
    ),
    Row(
        "solver_of_costs_on_the_host",
        lambda folder: solve([Cost("boxes", torch.zeros(1, 1, 2, 2), [2])], "device"),
        r'MATCHER.SOLVER is "device", which needs a CUDA device',
    ),
    Row(
        "solver_unknown",
        lambda folder: build_model(small_cfg(MODEL__DETR__MATCHER__SOLVER="gpu")),
        r"MATCHER.SOLVER is 'gpu'. Known: 'auto', 'device', 'scipy'",
    ),
    Row(
        "capture_reads_the_device",
        sizes([64, 64], MODEL__DETR__MATCHER__SOLVER="scipy"),
        r'CAPTURE is True and MODEL.DETR.MATCHER.SOLVER "scipy", which reads the device.*Set MODEL.DETR.MATCHER.SOLVER',
    ),
    Row("capture_without_sizes", sizes(), r"CAPTURE is True and SOLVER.CAPTURE_SIZES is empty. Give \[height, width\]"),
    Row("capture_size_is_a_number", sizes(64), r"SOLVER.CAPTURE_SIZES holds 64. Give \[height, width\] pairs"),
    Row(
        "capture_size_has_three", sizes([64, 64, 3]), r"CAPTURE_SIZES holds \[64, 64, 3\]. Give \[height, width\] pairs"
    ),
    Row("capture_size_below_1", sizes([64, 0]), r"A side in SOLVER.CAPTURE_SIZES is 0. Give"),
    Row(
        "capture_size_off_the_stride",
        sizes([60, 64]),
        r"CAPTURE_SIZES holds \[60, 64\], and the backbone works in cells of 8 pixels. .*multiples of 8.*\[64, 64\]",
    ),
    Row(
        "capture_of_a_larger_image",
        lambda folder: choose_size([(65, 40)], ((64, 64),)),
        r"CAPTURE_SIZES is \[\[64, 64\]\], and a batch of this run is 65 x 40 pixels. Add a size that holds it",
    ),
    Row(
        "compile_without_backbone",
        lambda folder: compile_backbones(small_cfg(), torch.nn.Linear(1, 1)),
        r"SOLVER.COMPILE is True, and Linear has no part called backbone. Set it to False",
    ),
    Row(
        "capture_of_no_objects",
        lambda folder: build_config("", ["SOLVER.CAPTURE_OBJECTS", "0"]),
        r"SOLVER.CAPTURE_OBJECTS is 0. Give",
    ),
]
