"""What the detectors of Hugging Face transformers need beside transformers; nothing here knows of distillation."""

from .detector import TransformersStudent
from .registration import register as _register_with_transformers

__all__ = ["TransformersStudent"]

_register_with_transformers()
