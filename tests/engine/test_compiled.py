"""Which parts SOLVER.COMPILE compiles, and what is said where torch cannot."""

from __future__ import annotations

from types import SimpleNamespace

from detr_distill.engine.compiled import compile_backbones
from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.golden_cases import DIGITS
from helpers.make_golden import build_untrained

CPU = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))


@pytest.fixture
def compiled(monkeypatch):
    """The modules that were compiled; nothing is, since that takes a minute."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, dynamic: found.append(module))
    return found


@pytest.mark.parametrize("name", ["d3etr_conditional", "lgd_retinanet", "fcos_student"])
def test_the_backbones_of_student_and_teacher_are_compiled(name, compiled):
    _, model = build_untrained(DIGITS / f"{name}.yaml")
    compile_backbones(CPU, model)
    expected = [dict(model.named_children()).get("student", model).backbone]
    if name == "d3etr_conditional":
        expected.append(model.teacher.detector.backbone)
    assert compiled == expected


def test_a_machine_that_cannot_compile(compiled, monkeypatch):
    def fail(function):
        raise RuntimeError("no C compiler\nand a page of its log")

    monkeypatch.setattr(torch, "compile", fail)
    model = torch.nn.Sequential()
    model.backbone = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"torch cannot compile on cpu here \(no C compiler\)\. Install a C compiler"):
        compile_backbones(CPU, model)
    assert not compiled
