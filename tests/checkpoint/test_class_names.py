"""Class names beside a detector's weights."""

from detr_distill.checkpoint import SafeCheckpointer, save_weights
from detr_distill.checkpoint.class_names import names_in, stored_class_names
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.commands import export_student

import pytest
import safetensors.torch
import torch
from torch import nn

NAMES = ("cat", "dög")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_they_are_kept_beside_weights(tmp_path, suffix):
    path = tmp_path / f"student{suffix}"
    save_weights({"weight": torch.ones(2)}, path, NAMES)
    assert stored_class_names(path) == NAMES
    assert read_checkpoint(path)["model"]["weight"].tolist() == [1, 1]
    save_weights({"weight": torch.ones(2)}, path)
    assert stored_class_names(path) is None and "class_names" not in read_checkpoint(path)


def test_a_run_s_checkpoints_have_them_and_so_has_the_student_that_is_taken_out(tmp_path):
    model = nn.Module()
    model.student = nn.Linear(2, 1)
    SafeCheckpointer(model, str(tmp_path), NAMES).save("model_final", iteration=3)
    for suffix in (".pth", ".safetensors"):
        output = tmp_path / f"student{suffix}"
        export_student.main(["--weights", str(tmp_path / "model_final.pth"), "--output", str(output)])
        assert stored_class_names(output) == NAMES


@pytest.mark.parametrize("content", [None, {}, {"class_names": []}, {"class_names": "cat"}, {"class_names": [1]}])
def test_anything_else_names_no_class(content):
    assert names_in(content) is None


def test_a_file_that_cannot_be_read_names_none(tmp_path):
    for name in ("model.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(b"damaged")
        assert stored_class_names(tmp_path / name) is None
    assert stored_class_names(tmp_path / "absent.pth") is None
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"class_names": "{"})
    assert stored_class_names(tmp_path / "model.safetensors") is None
