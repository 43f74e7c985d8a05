"""Fixtures shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from builders import make_inputs

torch.set_num_threads(1)


@pytest.fixture
def inputs():
    return make_inputs()
