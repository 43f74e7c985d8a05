"""Weights on disk: safe reading, atomic writing, and the way between plain and distilling models."""

from .checkpointer import SafeCheckpointer
from .export import save_weights, student_state_dict
from .strict import load_strict

__all__ = ["SafeCheckpointer", "load_strict", "save_weights", "student_state_dict"]
