"""What holds while a detector runs a second time within a step, on maps that are not its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextlib.contextmanager
def without_traces(detector: nn.Module, iteration: int | None, share: float = 1.0) -> Iterator[None]:
    """For a second run of a detector within a step: what it logs, and running means that it keeps, are as before.

    Args:
        iteration: of the run. share: part of the batch's images that the run sees.
    """
    normalizer = vars(detector).get("loss_normalizer")  # of detectron2's dense detectors: the batch's mean positives
    if normalizer is not None:
        detector.loss_normalizer = normalizer * share
    with EventStorage(iteration or 0), _kept_statistics(detector):
        yield
    if normalizer is None:
        vars(detector).pop("loss_normalizer", None)
    else:
        detector.loss_normalizer = normalizer


@contextlib.contextmanager
def _kept_statistics(detector: nn.Module) -> Iterator[None]:
    """Within, normalisation layers move copies of their running means: detection later uses the detector's own."""
    norms = [module for module in detector.modules() if isinstance(module, _NormBase) and module.training]
    kept = [dict(module._buffers) for module in norms]
    for module, buffers in zip(norms, kept, strict=True):
        module._buffers.update({name: value.clone() for name, value in buffers.items() if value is not None})
    try:
        yield
    finally:
        for module, buffers in zip(norms, kept, strict=True):
            module._buffers.update(buffers)


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
