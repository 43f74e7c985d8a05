"""Detectors in two halves, with their inner tensors kept."""

from . import convolutional, detr  # noqa: F401  (registration)
from .base import (
    StudentOutput,
    StudentStep,
    check_student,
    feature_channels,
    network_of,
    run_student,
    select_images,
    start_student,
)

__all__ = [
    "StudentOutput",
    "StudentStep",
    "check_student",
    "feature_channels",
    "network_of",
    "run_student",
    "select_images",
    "start_student",
]
