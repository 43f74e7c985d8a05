"""Which parts of the package may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import detr_distill

import pytest

PACKAGE = Path(detr_distill.__file__).parent


def imported_modules(file: Path) -> set[str]:
    """Full names of the modules that a file of the package imports, also inside functions."""
    package = ("detr_distill", *file.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


@pytest.mark.parametrize("file", sorted((PACKAGE / "detr").rglob("*.py")), ids=lambda file: file.name)
def test_detectors_never_import_distillation(file):
    assert not [name for name in imported_modules(file) if name.startswith("detr_distill.distill")]


def test_the_import_check_can_fail():
    """It sees relative imports of every form: ``from .classes``, ``from ..detr`` and ``from . import``."""
    found = imported_modules(PACKAGE / "distill" / "matchers" / "base.py")
    assert {"detr_distill.distill.classes", "detr_distill.detr.supervision.assignment"} <= found
    assert "detr_distill.distill.divergence" in imported_modules(PACKAGE / "distill" / "losses" / "prediction.py")
