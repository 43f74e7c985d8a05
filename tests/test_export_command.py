"""The export command, in the process."""

from __future__ import annotations

import logging

from detr_distill.checkpoint import load_strict
from detr_distill.checkpoint.class_names import stored_class_names
from detr_distill.commands import export_student, graphs
from detr_distill.options.tools import export_parser

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise
from helpers.hugging_face import student_cfg
from helpers.students import TINY, digits_cfg

NAMES = ["ant", "bee", "cat", "dog", "eel"]
KEYS = [str(word) for key, value in TINY.items() for word in (key.replace("__", "."), value)]
CONDITIONAL = ["--config-file", "configs/digits/conditional_student.yaml"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a run that distilled a tiny detector: its student has the name that it has there."""
    file = tmp_path_factory.mktemp("run") / "model_final.pth"
    weights = randomise(build_model(digits_cfg("conditional_student"))).state_dict()
    weights = {f"student.{name}": value for name, value in weights.items()}
    torch.save({"model": weights, "class_names": NAMES}, file)
    return file


def run(checkpoint, output, *words):
    arguments = ["--weights", str(checkpoint), "--output", str(output), *words]
    return export_student.run(export_parser().parse_args(arguments))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("configuration", [[], [*CONDITIONAL, *KEYS]], ids=["alone", "configured"])
def test_weights_have_any_name(form, configuration, checkpoint, tmp_path):
    """With the configuration they are those that its detector takes, the same ones."""
    run(checkpoint, tmp_path / "student", "--format", form, *configuration)
    (tmp_path / "student").rename(tmp_path / f"student.{form}")
    load_strict(build_model(digits_cfg("conditional_student")), tmp_path / f"student.{form}")
    assert list(stored_class_names(tmp_path / f"student.{form}")) == NAMES


def test_a_folder_of_transformers(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    said = run(checkpoint, tmp_path / "e-student", "--format", "transformers", *CONDITIONAL, *KEYS)
    assert "DetrDistillForObjectDetection, 5 classes" in said
    assert "import detr_distill before from_pretrained" in said and "build_conv_backbone" in said
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "e-student", local_files_only=True)
    weights = torch.load(checkpoint)["model"]
    assert all(
        torch.equal(model.detector.get_parameter(name.removeprefix("student.")), weights[name])
        for name in weights
        if name.endswith((".weight", ".bias")) and "norm" not in name
    )
    assert list(model.config.id2label.values()) == NAMES


@pytest.mark.parametrize("form", ["onnx", "program"])
def test_a_graph_has_any_name_and_takes_the_configuration_beside_the_weights(
    form, checkpoint, tmp_path, monkeypatch, caplog
):
    written = []

    def write(graph, path, names, size):
        written.append((type(graph.detector).__name__, path, names, size))
        return 0.0

    monkeypatch.setitem(graphs.GRAPHS, form, write)
    (checkpoint.parent / "config.yaml").write_text(digits_cfg("conditional_student").dump())
    with caplog.at_level(logging.INFO, "detr_distill"):
        said = run(checkpoint, tmp_path / "e-student", "--format", form)
    (checkpoint.parent / "config.yaml").unlink()
    assert written == [("DetrDetector", tmp_path / "e-student", NAMES, (96, 128))]
    assert "5 classes" in said and "config.yaml is read" in caplog.text


def test_a_student_of_transformers_leaves_from_its_checkpoint(tmp_path):
    """As the folder that its run writes."""
    transformers = pytest.importorskip("transformers")
    cfg = student_cfg(tmp_path, "rt_detr_v2")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = randomise(build_model(cfg), spread=0.1).state_dict()
    torch.save({"model": weights, "class_names": NAMES}, tmp_path / "model_final.pth")
    said = run(tmp_path / "model_final.pth", tmp_path / "student", "--format", "transformers")
    assert "RTDetrV2ForObjectDetection, 5 classes" in said and "import detr_distill" not in said
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "student", local_files_only=True)
    assert torch.equal(model.class_embed[0].weight, weights["model.class_embed.0.weight"])
    assert list(model.config.id2label.values()) == NAMES
