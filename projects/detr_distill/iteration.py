"""Iterations of a run: which one is under way, and how a configuration may name one."""

from __future__ import annotations

from detectron2.utils.events import get_event_storage


def current_iteration() -> int:
    """Of the training that is under way, from 0; 0 outside of one. It continues over a resume."""
    try:
        return get_event_storage().iter
    except AssertionError:
        return 0


def resolve_iteration(value: float, max_iter: int) -> int:
    """An iteration given as such, or below 1 as a fraction of the run."""
    return round(value * max_iter) if 0 < value < 1 else round(value)
