"""Detectors in two halves, with their inner tensors kept."""

from .base import Student, StudentOutput, StudentStep, check_student, select_images, student_for, student_of
from .convolutional import ConvolutionalStudent, DenseStudent, RegionStudent
from .detr import DetrStudent

__all__ = [
    "ConvolutionalStudent",
    "DenseStudent",
    "DetrStudent",
    "RegionStudent",
    "Student",
    "StudentOutput",
    "StudentStep",
    "check_student",
    "select_images",
    "student_for",
    "student_of",
]
