"""tools/import_checkpoint.py: what it writes, prints and reports, all or nothing."""

from __future__ import annotations

import importlib.util
import re

from detr_distill.checkpoint.strict import load_strict
from detr_distill.config.build import build_config

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from helpers.builders import ROOT, small_cfg

pytest.importorskip("transformers")

from helpers.checkpoint.imported_detectors import official_checkpoint

SPECIFICATION = importlib.util.spec_from_file_location("import_checkpoint", ROOT / "tools" / "import_checkpoint.py")
COMMAND = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(COMMAND)


def test_the_command_writes_weights_and_prints_their_configuration(tmp_path, capsys):
    _, weights = official_checkpoint("DetrDecoder", tmp_path, nheads=8)
    output, config = tmp_path / "out.pth", tmp_path / "new" / "folder" / "out.yaml"
    command = ["--source", "detr", "--weights", str(tmp_path / "official.pth"), "--output", str(output)]
    COMMAND.main([*command, "--config", str(config), "MODEL.DETR.NUM_HEADS", "4", "MODEL.RESNETS.RES5_DILATION", "2"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load(config.read_text())
    assert printed["MODEL"]["DETR"]["NUM_HEADS"] == 4 and printed["MODEL"]["RESNETS"]["RES5_DILATION"] == 2
    assert printed["MODEL"]["DETR"]["NUM_CLASSES"] == 5 and printed["MODEL"]["WEIGHTS"] == str(output)
    model = build_model(build_config(str(config), ["MODEL.DEVICE", "cpu"]))
    load_strict(model, output)
    assert torch.equal(model.decoder.norm.weight, weights["decoder.norm.weight"])
    teacher = {"CONFIG_FILE": str(config), "WEIGHTS": str(output)}
    keys = {f"MODEL__DISTILL__TEACHER__{key}": value for key, value in teacher.items()}
    distiller = build_model(small_cfg(MODEL__META_ARCHITECTURE="DistillDetector", **keys))
    assert torch.equal(distiller.teacher.detector.decoder.norm.weight, weights["decoder.norm.weight"])


def test_the_command_reports_errors_in_words(tmp_path, capsys):
    with pytest.raises(SystemExit):
        COMMAND.main(["--source", "transformers", "--weights", str(tmp_path), "--output", str(tmp_path / "out.pth")])
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"--config": "file/out.yaml"}, "--config .*out.yaml: .*file is no folder that can be written to"),
        ({"--config": "folder"}, "--config .*folder: that is a folder"),
        ({"--output": "file/out.pth"}, "--output .*out.pth: .*file is no folder"),
        ({"--output": "out.onnx"}, "must end in .pth or .safetensors"),
    ],
)
def test_the_command_writes_all_or_nothing(detr_folder, tmp_path, capsys, place, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    places = {"--output": "new/out.pth", "--config": "new/out.yaml", **place}
    command = [word for option, path in places.items() for word in (option, str(tmp_path / path))]
    with pytest.raises(SystemExit):
        COMMAND.main(["--source", "transformers", "--weights", str(detr_folder), *command])
    assert re.search(message, capsys.readouterr().err)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder"]
