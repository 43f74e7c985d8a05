"""Which weights a model takes, which it refuses, and the way between plain and distilling models."""

import importlib.util
import pickle
from pathlib import Path

from detr_distill.checkpoint import SafeCheckpointer, load_strict, save_weights, student_state_dict
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.errors import CheckpointError

import pytest
import torch
from torch import nn


def detector(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.ModuleDict({"backbone": nn.Linear(3, width), "head": nn.Linear(width, 2)})


class Distilling(nn.Module):
    """A student and one trainable part beside it."""

    def __init__(self, seed=0):
        super().__init__()
        self.student = detector(seed)
        self.losses = nn.Linear(2, 2)


def write(path, model):
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_plain_weights_initialise_a_student(tmp_path, caplog):
    model = Distilling(seed=1)
    caplog.set_level("INFO")
    SafeCheckpointer(model).load(write(tmp_path / "a.pth", detector(seed=2)))
    assert equal(detector(seed=2).state_dict(), model.student.state_dict())
    summary = [line for line in caplog.messages if line.startswith("Loaded")]
    assert len(summary) == 1 and "4 of 6 tensors; 2 keep their initialisation (first: losses.weight)" in summary[0]


@pytest.mark.parametrize("method", ["load", "load_complete"])
def test_a_student_loads_in_the_plain_detector(tmp_path, method):
    plain = detector(seed=1)
    getattr(SafeCheckpointer(plain), method)(write(tmp_path / "a.pth", Distilling(seed=2)))
    assert equal(plain.state_dict(), detector(seed=2).state_dict())


def test_student_state_dict():
    model = Distilling()
    assert student_state_dict(model).keys() == detector().state_dict().keys()
    assert equal(student_state_dict(model), model.student.state_dict())
    assert equal(student_state_dict(model.student), model.student.state_dict())


class TestTrainingGroups:
    """No detection depends on them: files and models with and without them go together, but to resume."""

    @staticmethod
    def grouped(seed=0):
        torch.manual_seed(seed + 10)
        groups = nn.ModuleDict({"GroupQueries": nn.Linear(2, 3)})
        return nn.ModuleDict({**detector(seed), "training_groups": groups})

    def test_what_is_exported_has_none(self):
        model = Distilling()
        model.student = self.grouped()
        assert student_state_dict(model).keys() == detector().state_dict().keys()
        assert student_state_dict(self.grouped()).keys() == detector().state_dict().keys()

    @pytest.mark.parametrize("load", [load_strict, lambda model, file: SafeCheckpointer(model).load_complete(file)])
    def test_detecting_models_accept_both(self, tmp_path, load):
        files = [write(tmp_path / "a.pth", self.grouped(seed=2)), write(tmp_path / "b.pth", detector(seed=2))]
        for file in files:
            for model in (detector(seed=1), self.grouped(seed=1)):
                load(model, file)
                assert equal(detector(seed=2).state_dict(), model.state_dict())
        with pytest.raises(CheckpointError, match=r"2 missing in the file: head.weight, head.bias\n"):
            load(self.grouped(), write(tmp_path / "c.pth", nn.ModuleDict({"backbone": nn.Linear(3, 4)})))

    def test_a_distilling_model_accepts_a_student_without(self, tmp_path):
        model = Distilling(seed=1)
        model.student = self.grouped(seed=1)
        SafeCheckpointer(model).load_complete(write(tmp_path / "a.pth", detector(seed=2)))
        assert equal(detector(seed=2).state_dict(), model.student.state_dict())

    def test_resuming_does_not(self, tmp_path):
        SafeCheckpointer(detector(), str(tmp_path)).save("model_1")
        with pytest.raises(CheckpointError, match=r"2 missing in the file: training_groups.GroupQueries.weight"):
            SafeCheckpointer(self.grouped(), str(tmp_path)).resume_or_load("", resume=True)


def test_nothing_that_fits_is_an_error(tmp_path):
    path = write(tmp_path / "a.pth", nn.ModuleDict({"trunk": nn.Linear(2, 2)}))
    with pytest.raises(CheckpointError, match=r"(?s)trunk.weight.*backbone.weight.*MODEL.WEIGHTS"):
        SafeCheckpointer(detector()).load(path)


def test_another_shape_is_skipped_to_initialise_and_refused_to_evaluate(tmp_path, caplog):
    caplog.set_level("INFO")
    source = detector(seed=2)
    source["head"] = nn.Linear(4, 9)
    path = write(tmp_path / "a.pth", source)
    model = detector(seed=1)
    SafeCheckpointer(model).load(path)
    assert torch.equal(model["backbone"].weight, source["backbone"].weight)
    assert "2 skipped for their shape (first: head.weight, (9, 4) instead of (2, 4))" in caplog.text
    with pytest.raises(CheckpointError, match=r"head.weight \(9, 4\) instead of \(2, 4\)"):
        SafeCheckpointer(detector()).load_complete(path)


def test_evaluation_accepts_no_gap_in_the_detector(tmp_path):
    path = write(tmp_path / "a.pth", nn.ModuleDict({"backbone": nn.Linear(3, 4)}))
    before = detector()
    with pytest.raises(CheckpointError, match=r"2 missing in the file: head.weight, head.bias"):
        SafeCheckpointer(before).load_complete(path)
    assert equal(before.state_dict(), detector().state_dict())
    SafeCheckpointer(Distilling()).load_complete(write(tmp_path / "b.pth", detector()))
    with pytest.raises(CheckpointError, match=r"set MODEL.WEIGHTS"):
        SafeCheckpointer(detector()).load_complete("")


def test_empty_weights_leave_the_initialisation():
    model = detector(seed=3)
    SafeCheckpointer(model).load("")
    assert equal(model.state_dict(), detector(seed=3).state_dict())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"MODEL.WEIGHTS .*none.pth: there is no such file"):
        SafeCheckpointer(detector()).load(str(tmp_path / "none.pth"))


def test_every_difference_to_another_run_has_its_own_line(tmp_path):
    path = write(tmp_path / "a.pth", nn.ModuleDict({str(number): nn.Linear(1, 1) for number in range(9)}))
    with pytest.raises(CheckpointError) as caught:
        SafeCheckpointer(detector(), str(tmp_path), trainer=nn.Linear(1, 1)).resume(path)
    lines = str(caught.value).splitlines()
    assert lines[2].endswith("and 13 more") and lines[3] == "  no trainer state"
    assert "OUTPUT_DIR" in lines[4]
    torch.save({"model": detector().state_dict()}, path)
    with pytest.raises(CheckpointError, match="configuration:\n  no trainer state\n"):
        SafeCheckpointer(detector(), str(tmp_path), trainer=nn.Linear(1, 1)).resume(path)


def test_a_backbone_without_prefix_finds_its_place(tmp_path):
    path = tmp_path / "backbone.pkl"
    arrays = {"weight": detector(seed=5)["backbone"].weight.detach().numpy()}
    model = nn.ModuleDict({"backbone": nn.Linear(3, 4, bias=False)})
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    SafeCheckpointer(model).load(str(path))
    assert torch.equal(model["backbone"].weight, detector(seed=5)["backbone"].weight)
    with pytest.raises(CheckpointError, match=r"fits backbone.weight and head.weight"):
        SafeCheckpointer(detector()).load(str(path))


def test_shared_layers_are_not_missing(tmp_path):
    model = detector()
    path = write(tmp_path / "a.pth", model)
    model["again"] = model["head"]
    SafeCheckpointer(model).load_complete(path)


@pytest.mark.parametrize(
    ("address", "url", "file"),
    [
        ("detectron2://a/R-50.pkl", "https://dl.fbaipublicfiles.com/detectron2/a/R-50.pkl", "detectron2/a/R-50.pkl"),
        ("https://example.invalid/b/c.pth", "https://example.invalid/b/c.pth", "b/c.pth"),
        ("torchvision://resnet18", "https://download.pytorch.org/models/resnet18-", "models/resnet18-"),
    ],
)
def test_without_internet_the_place_for_the_file_is_named(tmp_path, monkeypatch, address, url, file):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_internet(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("detr_distill.checkpoint.locate.PathManager.get_local_path", no_internet)
    with pytest.raises(CheckpointError) as caught:
        SafeCheckpointer(detector()).load(address)
    for part in (address, url, str(tmp_path / file), "MODEL.WEIGHTS"):
        assert part in str(caught.value)


def test_a_file_put_by_hand_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "c.pth", detector(seed=2))
    model = detector(seed=1)
    SafeCheckpointer(model).load("https://example.invalid/b/c.pth")
    assert equal(model.state_dict(), detector(seed=2).state_dict())


class TestStrict:
    def test_plain_and_student_checkpoints_of_every_format(self, tmp_path):
        source = detector(seed=2)
        save_weights(source.state_dict(), tmp_path / "a.safetensors")
        torch.save(source.state_dict(), tmp_path / "bare.pth")
        files = [write(tmp_path / "a.pth", source), tmp_path / "a.safetensors", tmp_path / "bare.pth"]
        files.append(write(tmp_path / "student.pth", Distilling(seed=2)))
        for file in files:
            model = detector(seed=1)
            load_strict(model, file)
            assert equal(model.state_dict(), source.state_dict()), file

    def test_an_empty_path_names_the_key(self):
        with pytest.raises(CheckpointError, match=r"MODEL.DISTILL.TEACHER.WEIGHTS is empty"):
            load_strict(detector(), "")

    def test_every_difference_is_named_and_nothing_is_loaded(self, tmp_path):
        other = nn.ModuleDict({"backbone": nn.Linear(3, 5), "neck": nn.Linear(1, 1)})
        model = detector(seed=1)
        with pytest.raises(CheckpointError) as caught:
            load_strict(model, write(tmp_path / "a.pth", other))
        message = str(caught.value)
        assert "2 missing in the file: head.weight, head.bias" in message
        assert "2 unknown to the model: neck.weight, neck.bias" in message
        assert "backbone.weight (5, 3) instead of (4, 3)" in message
        assert equal(model.state_dict(), detector(seed=1).state_dict())


def test_the_export_tool(tmp_path, capsys):
    path = Path(__file__).parents[2] / "tools" / "export_student.py"
    specification = importlib.util.spec_from_file_location("export_student", path)
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    weights = write(tmp_path / "a.pth", Distilling(seed=2))
    for name in ("out.pth", "out.safetensors"):
        tool.main(["--weights", weights, "--output", str(tmp_path / name)])
        assert equal(read_checkpoint(tmp_path / name)["model"], detector(seed=2).state_dict())
    with pytest.raises(SystemExit):
        tool.main(["--weights", str(tmp_path / "none.pth"), "--output", str(tmp_path / "out.pth")])
    assert "there is no such file" in capsys.readouterr().err
