"""Where a file has its weights, under which names; what is said of an average, and of weights that hardly fit."""

from __future__ import annotations

from detr_distill.checkpoint import SafeCheckpointer, load_strict
from detr_distill.checkpoint.files import read_checkpoint

import pytest
import torch
from torch import nn

WEIGHTS = {"backbone.weight": torch.ones(4, 3), "backbone.bias": torch.ones(4), "head.weight": torch.ones(2, 4)}
WEIGHTS["head.bias"] = torch.ones(2)


def detector():
    return nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


def other(weights):
    return {name: value * 5 for name, value in weights.items()}


def prefixed(prefix):
    return {f"{prefix}{name}": value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"model": WEIGHTS, "epoch": 3},
        {"state_dict": WEIGHTS, "epoch": 3},
        {"params": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        {"ema": {"module": WEIGHTS, "updates": 7}},
        {"model_ema": WEIGHTS},
        {"detector": WEIGHTS, "epoch": 3},
        prefixed("module."),
        prefixed("_orig_mod."),
        {"state_dict": prefixed("module._orig_mod.")},
    ],
)
def test_weights_are_found_under_every_usual_key_and_name(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["model"].keys() == WEIGHTS.keys()
    assert all(torch.equal(found["model"][name], value) for name, value in WEIGHTS.items())
    assert found.get("epoch") == content.get("epoch")


@pytest.mark.parametrize("prefix", ["", "model.", "detector.", "student.", "model.student.", "module.student."])
def test_a_wrappers_prefix_is_removed(tmp_path, prefix):
    torch.save({"state_dict": {**prefixed(prefix), "criterion.weight": torch.ones(1)}}, tmp_path / "a.pth")
    for load in (SafeCheckpointer.load, SafeCheckpointer.load_complete):
        model = detector()
        load(SafeCheckpointer(model), str(tmp_path / "a.pth"))
        assert all(bool((value == 1).all()) for value in model.state_dict().values())


@pytest.mark.parametrize("average", [{"model_ema": other(WEIGHTS)}, {"ema": {"module": other(WEIGHTS)}}])
def test_an_average_that_is_not_taken_is_said(tmp_path, caplog, average):
    torch.save({"model": WEIGHTS, **average}, tmp_path / "a.pth")
    model = detector()
    load_strict(model, tmp_path / "a.pth")
    assert bool((model["head"].bias == 1).all())
    key = next(iter(average))
    assert "a.pth: its weights under 'model' are taken, and not their moving average under" in caplog.text
    assert f"torch.load(FILE)['{key}']" in caplog.text


def test_an_average_that_is_all_there_is_is_said(tmp_path, caplog):
    torch.save({"ema": WEIGHTS}, tmp_path / "a.pth")
    load_strict(detector(), tmp_path / "a.pth")
    assert "the moving average under 'ema', which is all that it has" in caplog.text


def test_the_average_of_a_run_is_said(tmp_path, caplog):
    torch.save({"model": {**prefixed("student."), **prefixed("teacher.average.")}}, tmp_path / "a.pth")
    for load in (load_strict, lambda model, file: SafeCheckpointer(model).load(str(file))):
        caplog.clear()
        load(detector(), tmp_path / "a.pth")
        assert "the student is taken, and not its moving average under 'teacher.average.'" in caplog.text


class TestFewTensors:
    def load(self, folder, weights):
        torch.save(weights, folder / "a.pth")
        SafeCheckpointer(detector()).load(str(folder / "a.pth"))

    def test_most_of_the_file_unused_is_a_warning(self, tmp_path, caplog):
        self.load(tmp_path, {**WEIGHTS, "head.weight": torch.ones(7, 4), **prefixed("neck.")})
        (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
        text = line.getMessage()
        assert "MODEL.WEIGHTS" in text and "a.pth hardly fits: 3 of 4 tensors" in text
        assert "first: head.weight, (7, 4) instead of (2, 4)" in text and "first: neck.backbone.weight" in text

    def test_a_backbone_or_other_classes_are_none(self, tmp_path, caplog):
        self.load(tmp_path, {name: value for name, value in WEIGHTS.items() if name.startswith("backbone")})
        self.load(tmp_path, {**WEIGHTS, "head.bias": torch.ones(7), "fc.weight": torch.ones(1)})
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
