"""The fuzzer: its inputs, how it counts, and a few inputs of each kind without a fault."""

from __future__ import annotations

from collections.abc import Iterator

from detr_distill.errors import DataError

import pytest

import benchmarks  # noqa: F401  (puts the benchmarks' own names on the path)
from benchmarks import fuzz


def endings() -> Iterator[tuple[str, object]]:
    def fail(error):
        raise error

    while True:
        yield "good", lambda: None
        yield "refused", lambda: fail(DataError("in words"))
        yield "dropped", lambda: fail(AssertionError("1 of 2 objects"))
        yield "crashed", lambda: fail(KeyError("bbox"))


def test_every_ending_is_counted(monkeypatch):
    module = type("module", (), {"inputs": staticmethod(lambda generator: endings())})
    monkeypatch.setattr(fuzz.importlib, "import_module", lambda name: module)
    result = fuzz.fuzz(["kind"], seed=0, seconds=60, most=9)
    counts = {key: result[key] for key in ("inputs", "taken", "refused", "silent_drops", "stack_traces")}
    assert counts == {"inputs": 9, "taken": 3, "refused": 2, "silent_drops": 2, "stack_traces": 2}
    examples = result["kinds"]["kind"]["examples"]
    assert examples["silent_drops"][0] == {"number": 2, "input": "dropped", "error": "1 of 2 objects"}
    assert "KeyError" in examples["stack_traces"][0]["error"][-1]


@pytest.mark.parametrize("kind", fuzz.kinds())
def test_random_inputs_end_well(kind):
    result = fuzz.fuzz([kind], seed=1, seconds=10, most=60)
    assert result["inputs"] > 5 and result["taken"] and result["refused"]
    assert not result["silent_drops"] and not result["stack_traces"], result["kinds"][kind]["examples"]
