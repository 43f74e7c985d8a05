"""Every bad input of the tables in tests/bad_input is refused by an error of the project, in the words expected."""

from __future__ import annotations

import importlib
import pkgutil
import re

from detr_distill.engine.report import format_block
from detr_distill.errors import DetrDistillError

import bad_input
import pytest
from bad_input import Row

MODULES = sorted(module.name for module in pkgutil.iter_modules(bad_input.__path__))
TABLE = [
    pytest.param(row, id=f"{module}-{row.name}")
    for module in MODULES
    for row in importlib.import_module(f"bad_input.{module}").ROWS
]


@pytest.mark.parametrize("row", TABLE)
def test_a_bad_input_is_refused_in_words(row: Row, tmp_path):
    with pytest.raises(DetrDistillError) as caught:
        row.call(tmp_path)
    message = str(caught.value)
    assert re.search(row.words, message, re.DOTALL), f"expected {row.words!r} in: {message}"
    assert "Traceback" not in format_block(caught.value)


def test_every_row_has_a_name_of_its_own():
    names = [parameter.id for parameter in TABLE]
    assert len(set(names)) == len(names) >= 150
