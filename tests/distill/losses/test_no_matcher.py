"""Losses know matchers by what these say of themselves, and by no name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from detr_distill.distill import losses
from detr_distill.registry import MATCHER_REGISTRY

import pytest


class NamesInCode(ast.NodeVisitor):
    """Words of a module's strings, and its identifiers; neither docstrings nor the meanings of keys."""

    def __init__(self):
        self.words, self.identifiers = set(), set()

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id == "key":
            node.args = node.args[:1] + node.args[2:]
        self.generic_visit(node)

    def visit_Constant(self, node):
        self.words.update(re.findall(r"\w+", str(node.value)))

    def visit_Name(self, node):
        self.identifiers.add(node.id)

    def visit_Attribute(self, node):
        self.identifiers.add(node.attr)
        self.generic_visit(node)

    def visit_alias(self, node):
        self.identifiers.update((node.name, node.asname))


@pytest.mark.parametrize("file", sorted(Path(losses.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_no_loss_names_a_matcher(file):
    """It asks matchers for what they give, so that it serves those of a user too."""
    short = {matcher.name for _, matcher in MATCHER_REGISTRY}
    classes = {name for name, _ in MATCHER_REGISTRY}
    assert short >= {"general", "adaptive", "fixed", "overlap"} and "GeneralMatcher" in classes
    found = NamesInCode()
    found.visit(ast.parse(file.read_text()))
    assert not found.words & (short | classes) and not found.identifiers & classes
