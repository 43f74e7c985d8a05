"""Fixtures shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers.builders import make_inputs

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """A test draws the same numbers whatever ran before it in the process."""
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    return make_inputs()
