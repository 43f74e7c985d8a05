"""``MODEL.DISTILL.TEACHER.NAME``: what turns a step into knowledge."""

from .ema import EmaTeacher
from .foundation import FoundationModel
from .frozen import FrozenDetector
from .label_encoder import LabelEncoder, LabelMapEncoder
from .none import NoTeacher
from .predictions import PredictionsFile
from .transformers import TransformersDetector

__all__ = [
    "EmaTeacher",
    "FoundationModel",
    "FrozenDetector",
    "LabelEncoder",
    "LabelMapEncoder",
    "NoTeacher",
    "PredictionsFile",
    "TransformersDetector",
]
