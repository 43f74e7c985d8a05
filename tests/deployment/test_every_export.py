"""Every kind of detector through torch's exporters: ``make exports``, half an hour of a core."""

from __future__ import annotations

from detr_distill.config.build import build_config
from detr_distill.deployment import writing
from detr_distill.deployment.checking import TOLERANCE
from detr_distill.deployment.graphs import graph_of

import pytest
from detectron2.modeling import build_model
from helpers.builders import ROOT, randomise
from helpers.hugging_face import EVERY_KIND, build_student
from helpers.students import STUDENTS, convolutional, digits_cfg

pytestmark = pytest.mark.exports

SIZE = (96, 128)
ON_RESNETS = ["detr_r18", "deformable_r18_two_stage"]
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "none", "MODEL.DETR.NUM_CLASSES", "5", "MODEL.DETR.NUM_QUERIES", "9"),
    *("MODEL.DETR.HIDDEN_DIM", "32", "MODEL.DETR.NUM_HEADS", "2", "MODEL.DETR.FFN_DIM", "24"),
    *("MODEL.DETR.ENCODER.NUM_LAYERS", "1", "MODEL.DETR.DECODER.NUM_LAYERS", "2"),
]


def check(detector, folder, monkeypatch):
    """Both forms agree with PyTorch at other sizes and numbers of images, unequal ones too."""
    pytest.importorskip("onnxruntime")
    graph = graph_of(detector.eval().requires_grad_(False), "BGR")
    traced = writing.trace(graph, SIZE, "program")
    monkeypatch.setattr(writing, "trace", lambda *_: traced)
    assert writing.write_program(graph, folder / "program", ["a"], SIZE) <= TOLERANCE
    assert writing.write_onnx(graph, folder / "onnx", ["a"], SIZE) <= TOLERANCE


@pytest.mark.parametrize("name", STUDENTS)
def test_a_detector_of_ours(name, tmp_path, monkeypatch):
    # With larger weights an AdaMixer makes much of the last digits.
    spread = 0.05 if name == "adamixer_student" else 0.15
    check(randomise(build_model(digits_cfg(name)), spread=spread), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ON_RESNETS)
def test_a_detector_of_ours_on_a_resnet(name, tmp_path, monkeypatch):
    cfg = build_config(str(ROOT / f"configs/detr/{name}.yaml"), SMALL)
    check(randomise(build_model(cfg), spread=0.05), tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_detector_of_transformers(kind, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    check(build_student(tmp_path, kind), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["faster_rcnn", "fcos", "retinanet"])
def test_a_convolutional_detector(name, tmp_path, monkeypatch):
    check(convolutional(name), tmp_path, monkeypatch)
