"""Detections drawn into images and videos."""

from .detect import Detect, from_onnx, from_predictor
from .media import draw_media

__all__ = ["Detect", "draw_media", "from_onnx", "from_predictor"]
