"""The shipped recipes whose teacher is a folder of transformers: built at full size, taught by a small one."""

from __future__ import annotations

from unittest import mock

from detr_distill.data import training_class_names
from detr_distill.engine import build_config
from detr_distill.hugging_face.folder import save_folder

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT
from helpers.hugging_face import build_student
from helpers.make_golden import NO_DOWNLOAD
from helpers.structures import TAUGHT_BY_FOLDERS

pytest.importorskip("transformers")


@pytest.mark.parametrize(("name", "kind"), TAUGHT_BY_FOLDERS.items())
def test_it_builds(name, kind, tmp_path):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.DISTILL.TEACHER.WEIGHTS", str(tmp_path / "teacher"), *NO_DOWNLOAD]
    cfg = build_config(str(ROOT / f"configs/{name}.yaml"), overrides)
    teacher = build_student(tmp_path, kind, MODEL__DETR__NUM_CLASSES=80)
    save_folder(teacher, tmp_path / "teacher", training_class_names(cfg))
    undrawn = {draw: lambda values, *_arguments, **_keys: values for draw in ("uniform_", "normal_")}
    with mock.patch.multiple(torch.Tensor, **undrawn):
        model = build_model(cfg)
    assert list(model.matchers) == ["AdaptiveMatcher", "FixedMatcher"] and "PredictionLoss" in model.losses
    assert model.teacher.name == type(teacher.model).__name__
