"""Distillation of DETR-type detectors on detectron2. Importing the package registers everything it offers."""

from . import compat  # noqa: F401  # isort: skip  (before anything of detectron2)
from . import convolutional, data, detr, distill, hugging_face  # noqa: F401  (registration)
from .building import build_detector
from .config import add_detr_distill_config
from .moved import install as _install_moved_names
from .protocols import follow_optimizer

__all__ = ["add_detr_distill_config", "build_detector", "follow_optimizer"]

_install_moved_names()
