"""The losses of every small configuration are the stored ones."""

from __future__ import annotations

import json

from detr_distill.engine import build_config
from detr_distill.registry import LOSS_REGISTRY

import pytest
from helpers.golden_cases import CASES, DIGITS
from helpers.make_golden import GOLDEN, golden_losses


@pytest.mark.parametrize("name", CASES)
def test_losses_are_the_stored_ones(name):
    """Written by ``python tests/make_golden.py``."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    assert all(value for key, value in stored.items() if "distill" in key), "0 would be right for many wrong losses"
    assert golden_losses(name) == pytest.approx(stored, rel=1e-4, abs=1e-7)


def test_every_file_and_every_kind_of_loss_is_stored_and_nothing_else():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(CASES)
    files = {file.stem for file in DIGITS.glob("*.yaml") if not file.stem.startswith("Base-")}
    assert files == {case.config for name, case in CASES.items() if name == case.config}
    stored = set()
    for case in CASES.values():
        node = build_config(str(DIGITS / f"{case.config}.yaml"), []).MODEL.DISTILL
        stored.update(case.keys.get("LOSSES", node.LOSSES))
    assert stored == {name for name, _ in LOSS_REGISTRY}
