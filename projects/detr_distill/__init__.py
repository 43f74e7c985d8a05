"""Distillation of DETR-type detectors on detectron2. Importing the package registers everything it offers."""

from . import compat  # noqa: F401  # isort: skip  (before anything of detectron2)
from . import data, detr, distill, fcos  # noqa: F401  (registration)
from .config import add_detr_distill_config

__all__ = ["add_detr_distill_config"]
