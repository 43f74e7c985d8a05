"""Every tool is a thin program of one verb; the work is in the package."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).resolve().parent.parent / "tools").glob("*.py"))


@pytest.mark.parametrize("file", TOOLS, ids=lambda file: file.stem)
def test_a_tool_calls_a_module_of_the_package(file, capsys):
    specification = importlib.util.spec_from_file_location(f"{file.stem}_tool", file)
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    assert len(file.read_text().splitlines()) <= 25
    assert tool.main.__module__.startswith("detr_distill.")
    with pytest.raises(SystemExit) as done:
        tool.main(["--help"])
    assert done.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["demo", "engine", "commands.export_student"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_an_installed_package_has_the_programs_too(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module(f"detr_distill.{module}", run_name="__main__")
    assert done.value.code == 0 and "usage:" in capsys.readouterr().out
