"""The demonstration, ``python -m detr_distill.demo``: a student without and with a teacher, compared and drawn."""

from .run import main

__all__ = ["main"]
