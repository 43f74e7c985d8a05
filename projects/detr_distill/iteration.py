"""Which iteration of a run a step is, and how a configuration may name one."""

from __future__ import annotations

from detectron2.utils.events import get_event_storage

from .errors import ConfigError
from .moved import renamed

__getattr__ = renamed(__name__, {})


def trainer_iteration() -> int | None:
    """Of detectron2's training loop that is under way, from 0; it continues over a resume. None outside of one."""
    try:
        return get_event_storage().iter
    except AssertionError:
        return None


def needed_iteration(iteration: int | None, who: str) -> int:
    """The iteration itself.

    Raises:
        ConfigError: nobody said which it is, and ``who``, a key or a class, needs it.
    """
    if iteration is None:
        raise ConfigError(
            f"{who} follows the iterations of a run, and nobody said which one this step is. In a loop of your own "
            "call model(inputs, iteration=n) with n from 0, which a resumed run continues; detectron2's trainer says "
            "it by itself."
        )
    return iteration


def resolve_iteration(value: float, max_iter: int) -> int:
    """An iteration given as such, or below 1 as a fraction of the run."""
    return round(value * max_iter) if 0 < value < 1 else round(value)
