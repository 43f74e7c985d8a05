"""Which of torch's functions a piece of code calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode


class _Calls(TorchFunctionMode):
    def __init__(self, calls: list[tuple[Callable, tuple]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@contextmanager
def torch_calls() -> Iterator[list[tuple[Callable, tuple]]]:
    """Gives a list of each function that is called within the block, with its arguments by position."""
    calls: list[tuple[Callable, tuple]] = []
    with _Calls(calls):
        yield calls
