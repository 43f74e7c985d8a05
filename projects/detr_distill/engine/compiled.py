"""Parts of a model compiled by torch, for detectors whose steps cannot be captured."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from ..distill import DistillDetector
from ..errors import ConfigError
from ..protocols import student_in


def compile_backbones(cfg: CfgNode, model: nn.Module) -> None:
    """Compiles, in place, the backbones of the student and of a teacher that is a detector; ``SOLVER.COMPILE``.

    Parameters and their names stay. Sizes of images are symbols, so that a new size is not compiled anew.

    Raises:
        ConfigError: torch cannot compile here, or the detector has no ``backbone``.
    """
    detectors = [student_in(model) or model]
    if isinstance(model, DistillDetector) and model.teacher.detector is not None:
        detectors.append(model.teacher.detector)
    backbones = [dict(detector.named_children()).get("backbone") for detector in detectors]
    if backbones[0] is None:
        raise ConfigError(
            f"SOLVER.COMPILE is True, and {type(detectors[0]).__name__} has no part called backbone. Set it to False."
        )
    _check_compiler(cfg.MODEL.DEVICE)
    for backbone in backbones:
        if backbone is not None:
            backbone.compile(dynamic=True)


def _check_compiler(device: str) -> None:
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # whatever is absent: a C compiler, Triton, support of this Python
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"SOLVER.COMPILE is True, and torch cannot compile on {device} here ({reason}). Install a C compiler and, "
            "for CUDA, Triton; or set the key to False."
        ) from error
