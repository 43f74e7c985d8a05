"""What holds while a detector runs a second time within a step, on maps that are not its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detectron2.utils.events import EventStorage
from torch import nn

from ..iteration import current_iteration


@contextlib.contextmanager
def without_traces(detector: nn.Module) -> Iterator[None]:
    """For a second run of a detector within a step: what it logs, and running means that it keeps, are as before."""
    normalizer = vars(detector).get("loss_normalizer")  # of detectron2's dense detectors
    with EventStorage(current_iteration()):
        yield
    if normalizer is None:
        vars(detector).pop("loss_normalizer", None)
    else:
        detector.loss_normalizer = normalizer


@contextlib.contextmanager
def fewer_regions(detector: nn.Module, share: float) -> Iterator[None]:
    """Within, a two-stage detector's head learns from that part of the regions an image; others have no regions."""
    heads = getattr(detector, "roi_heads", None)
    if heads is None or share == 1:
        yield
        return
    number = heads.batch_size_per_image
    heads.batch_size_per_image = max(1, round(share * number))
    try:
        yield
    finally:
        heads.batch_size_per_image = number


@contextlib.contextmanager
def held_constant(module: nn.Module, hold: bool = True) -> Iterator[None]:
    """Within, what the module computes sends gradients to its inputs alone."""
    parameters = [parameter for parameter in module.parameters() if hold and parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
