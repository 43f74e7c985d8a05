"""Distilling students, and the choice of the deformable kernel."""

from __future__ import annotations

from detr_distill.detr.layers.deformable_kernel import choose_deformable_kernel

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg


@pytest.fixture
def distiller(tmp_path):
    """Builds a randomised student with a randomised frozen teacher, each from its overrides."""

    def make(teacher: dict, student: dict):
        cfg = small_cfg(**teacher)
        (tmp_path / "teacher.yaml").write_text(cfg.dump())
        torch.save({"model": randomise(build_model(cfg), 1).state_dict()}, tmp_path / "teacher.pth")
        keys = {
            "MODEL__META_ARCHITECTURE": "DistillDetector",
            "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(tmp_path / "teacher.yaml"),
            "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "teacher.pth"),
        }
        model = build_model(small_cfg(**keys, **student)).train()
        randomise(model.student, 2)
        return model

    return make


@pytest.fixture
def kernel():
    """Chooses a form for a test; afterwards it is the default's choice again."""
    yield choose_deformable_kernel
    choose_deformable_kernel("auto")
