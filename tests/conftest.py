"""Fixtures shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import detr_distill.engine  # noqa: F401  (a configuration that a module makes when it is imported has all keys)

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers.builders import make_inputs

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory):
    """What runs keep in the user's cache is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed():
    """A test draws the same numbers whatever ran before it in the process."""
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    return make_inputs()


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory):
    """Ten pictures of handwritten digits, registered as a set of their own."""
    from detr_distill.data import build_digits, register_datasets

    folder = build_digits(tmp_path_factory.mktemp("digits"), "val", 10)
    register_datasets([["tiny_digits", str(folder / "annotations/instances.json"), str(folder / "images")]])
    assert len(DatasetCatalog.get("tiny_digits")) == 10
    return "tiny_digits"
