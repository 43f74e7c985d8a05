"""A small frozen teacher on disk, and distilling students that learn from it."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg

TEACHER = {"MODEL__DETR__HIDDEN_DIM": 24, "MODEL__DETR__NUM_QUERIES": 9, "MODEL__DETR__DECODER__NUM_LAYERS": 3}


@pytest.fixture(scope="session")
def save_teacher(tmp_path_factory):
    """Writes a teacher's configuration and random weights; returns the overrides that a student's needs."""

    def save(seed=1, **keys):
        folder = tmp_path_factory.mktemp("teacher")
        cfg = small_cfg(**keys)
        (folder / "teacher.yaml").write_text(cfg.dump())
        model = randomise(build_model(cfg), seed)
        torch.save({"model": model.state_dict()}, folder / "teacher.pth")
        return {
            "MODEL__META_ARCHITECTURE": "DistillDetector",
            "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(folder / "teacher.yaml"),
            "MODEL__DISTILL__TEACHER__WEIGHTS": str(folder / "teacher.pth"),
        }

    return save


@pytest.fixture(scope="session")
def wide_teacher(save_teacher):
    """Wider, deeper and with more queries than the student."""
    return save_teacher(**TEACHER)


@pytest.fixture(scope="session")
def equal_teacher(save_teacher):
    """Of the student's own shape."""
    return save_teacher()


@pytest.fixture
def build_distiller():
    """Builds a randomised student with a teacher."""

    def build(*overrides, **keys):
        merged = {key: value for override in overrides for key, value in override.items()} | keys
        model = build_model(small_cfg(**merged)).train()
        randomise(model.student, seed=2)
        return model

    return build


@pytest.fixture(scope="module")
def named_sets():
    """Two training sets that are known by their class names alone."""
    names = {"mixed_teacher": list("abcdefgh"), "mixed_student": ["g", "b", "x", "d"]}
    for name, classes in names.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).thing_classes = classes
    yield tuple(names)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
