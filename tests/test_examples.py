"""The plain PyTorch loop distils, and needs no more than it says."""

from __future__ import annotations

import ast
import importlib.util
import re

import pytest
from helpers.builders import ROOT

EXAMPLE = ROOT / "examples" / "plain_pytorch.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("plain_pytorch", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loop_distils(example, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(example, "ITERATIONS", 8)
    monkeypatch.setattr(example, "BATCH", 4)
    example.main()
    lines = re.findall(r"iteration (\d+)/8 +loss ([\d.]+), distilled ([\d.]+)", capsys.readouterr().out)
    assert [line[0] for line in lines] == ["1", "8"]
    first, last = ([float(value) for value in line[1:]] for line in lines)
    assert last[1] < first[1] < first[0]
    assert last[0] < first[0]


def test_the_loop_is_short_and_imports_public_names_alone():
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 60
    modules, names = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = [alias.name for alias in node.names]
            names.update(found)
            modules.update([node.module] if isinstance(node, ast.ImportFrom) else found)
    assert not {name for name in modules if name.startswith(("yacs", "detectron2.config", "detectron2.engine"))}
    words = {word for name in (modules | names) - {"__future__"} for word in name.split(".")}
    assert not {word for word in words if word.startswith("_")}
