"""Weights on disk: safe reading, atomic writing, and the way between plain and distilling models."""

from .checkpointer import SafeCheckpointer, last_checkpoint
from .export import save_weights, student_state_dict
from .strict import load_strict

__all__ = ["SafeCheckpointer", "last_checkpoint", "load_strict", "save_weights", "student_state_dict"]
