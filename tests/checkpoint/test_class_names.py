"""Class names beside a detector's weights."""

import re

from detr_distill.checkpoint import SafeCheckpointer, save_weights
from detr_distill.checkpoint.class_names import names_in, stored_class_names
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.commands import export_student
from detr_distill.errors import CheckpointError

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


@pytest.mark.parametrize(
    ("own", "words", "refused"),
    [
        (NAMES, "", False),
        (("cat", "do\u0308g"), "", False),
        (None, "", False),
        (("cat", "dög", "owl"), "", False),
        (("cat", "owl"), r"from class 1 on it names \['dög'\], and the data \['owl'\]", False),
        (NAMES[::-1], r"from class 0 on it names \['cat', 'dög'\], and the data \['dög', 'cat'\]", True),
    ],
)
def test_they_are_compared_with_the_data_s(tmp_path, own, words, refused, caplog):
    """A warm start learns on; an evaluation would count each class as another."""
    path, model = tmp_path / "a.pth", nn.Linear(2, 2)
    save_weights(model.state_dict(), path, NAMES)
    SafeCheckpointer(model, class_names=own).load(str(path))
    assert bool(words) == ("rows of classes start as those of others" in caplog.text)
    assert re.search(words, caplog.text)
    caplog.clear()
    if refused:
        with pytest.raises(CheckpointError, match=f"trained on other classes than those of the data: {words}"):
            SafeCheckpointer(model, class_names=own).load_complete(str(path))
        return
    SafeCheckpointer(model, class_names=own).load_complete(str(path))
    assert bool(words) == ("Classes are counted by their index" in caplog.text)


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
