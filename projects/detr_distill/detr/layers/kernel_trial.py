"""A kernel is tried before it is relied on: Triton may be absent, lack a C compiler, or not know the device."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def tried(otherwise: str) -> Callable[[Callable[[torch.device], None]], Callable[[torch.device], bool]]:
    """Decorates a trial on a device, which raises where the kernel fails or is wrong: whether it works.

    Args:
        otherwise: what is done without the kernel; a warning says it, and why.
    """

    def decorate(trial: Callable[[torch.device], None]) -> Callable[[torch.device], bool]:
        def works(device: torch.device) -> bool:
            try:
                trial(device)
            except Exception as error:  # whatever Triton, its compiler or the driver raises
                logger.warning("%s: Triton fails on %s (%s).", otherwise, device, error)
                return False
            return True

        works.__doc__ = trial.__doc__
        return works

    return decorate
