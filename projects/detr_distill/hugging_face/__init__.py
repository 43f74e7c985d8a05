"""What the detectors of Hugging Face transformers need beside transformers; nothing here knows of distillation."""

from .detector import TransformersStudent

__all__ = ["TransformersStudent"]
