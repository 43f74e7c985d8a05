"""Detectors in two halves, with their inner tensors kept."""

from .base import Student, StudentOutput, StudentStep, check_student, student_for, student_of, take_images
from .convolutional import ConvolutionalStudent, DenseStudent, RegionStudent
from .detr import DetrStudent
from .earlier import count_classes, feature_channels, network_of, run_student, select_images, start_student
from .transformers import TransformersRunner

__all__ = [
    "ConvolutionalStudent",
    "DenseStudent",
    "DetrStudent",
    "RegionStudent",
    "Student",
    "StudentOutput",
    "StudentStep",
    "TransformersRunner",
    "check_student",
    "count_classes",
    "feature_channels",
    "network_of",
    "run_student",
    "select_images",
    "start_student",
    "student_for",
    "student_of",
    "take_images",
]
