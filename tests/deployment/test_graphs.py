"""Detectors as graphs, programs and ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

from detr_distill.deployment import writing
from detr_distill.deployment.checking import CASES, Case, compare, example, make_case
from detr_distill.deployment.graphs import graph_of
from detr_distill.deployment.library_graph import stretch_each
from detr_distill.deployment.suppression import best_of_each
from detr_distill.deployment.writing import write_onnx, write_program
from detr_distill.errors import CheckpointError, ConfigError
from detr_distill.hugging_face.images import stretch

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.hugging_face import EVERY_KIND, build_student
from helpers.students import STUDENTS, convolutional, digits_cfg
from torch import nn

SIZE = (64, 96)
NAMES = [f"class {index}" for index in range(5)]


@pytest.fixture(scope="module")
@torch.no_grad()
def detector() -> nn.Module:
    """With as few operators as can be: an exporter's time goes by their number."""
    cfg = small_cfg(
        MODEL__CONV_BACKBONE__CHANNELS=[8],
        MODEL__DETR__IN_FEATURES=["stage1"],
        MODEL__DETR__ENCODER__NUM_LAYERS=0,
        MODEL__DETR__DECODER__NUM_LAYERS=1,
        MODEL__DETR__DECODER__NAME="DetrDecoder",
        MODEL__DETR__LOSS__CLASSIFICATION="softmax",
    )
    found = randomise(build_model(cfg), spread=0.5).eval()
    scores = graph_of(found, "BGR")(*example(1, *SIZE))[1]
    assert scores[0, 0] - scores[0, -1] > 0.01, "detections that are alike would prove nothing"
    return found


@pytest.fixture(scope="module")
def traced(detector) -> torch.export.ExportedProgram:
    """Of the detector, once: it is what takes time."""
    return writing.trace(graph_of(detector, "BGR"), SIZE, "program")


@pytest.fixture
def once(traced, monkeypatch):
    """What is written is what was traced."""
    monkeypatch.setattr(writing, "trace", lambda *_: traced)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_graph_detects_what_the_detector_does(name):
    """Images of one size: boxes in pixels, scores and labels of ``detect``, which knows them from lists."""
    found = randomise(build_model(digits_cfg(name))).eval()
    images, sizes = example(2, 60, 84)
    ordered = images.flip(1)
    with torch.no_grad():
        boxes, scores, labels = graph_of(found, "BGR")(images, sizes)
        expected = found.detect([{"image": image, "height": 60, "width": 84} for image in ordered])
    check_detections(boxes, scores, labels, expected)


def check_detections(boxes, scores, labels, expected):
    """What a graph gives of images, boxes without area apart, against the detector's own lists."""
    for image, entry in enumerate(expected):
        instances = entry["instances"]
        kept = ((boxes[image, :, 2:] - boxes[image, :, :2]) > 0).all(-1)
        torch.testing.assert_close(scores[image][kept], instances.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(boxes[image][kept], instances.pred_boxes.tensor, rtol=0, atol=1e-2)
        assert torch.equal(labels[image][kept], instances.pred_classes)


@pytest.mark.parametrize("name", ["faster_rcnn", "fcos", "retinanet"])
def test_the_graph_of_a_convolutional_detector_detects_what_it_does(name):
    """One image; boxes of equal score may come in another order."""
    found = convolutional(name)
    found.max_detections_per_image = 10000  # the graph of a RetinaNet keeps all

    def detect(images, sizes):
        height, width = images.shape[-2:]
        instances = found([{"image": images[0].flip(0), "height": height, "width": width}])[0]["instances"]
        assert len(instances) > 20
        return instances.pred_boxes.tensor[None], instances.scores[None], instances.pred_classes[None]

    assert compare(graph_of(found, "BGR"), detect, Case(1), SIZE, "it") <= 1e-4


def test_padding_changes_nothing_but_what_convolutions_carry_over(detector):
    """What lies in the padding is not looked at."""
    images, sizes = make_case(Case(3, ragged=True), graph_of(detector, "BGR"), SIZE)
    other = images.clone()
    other[0, :, sizes[0, 0] :] = 255
    with torch.no_grad():
        results = [graph_of(detector, "BGR")(batch, sizes) for batch in (images, other)]
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.usefixtures("once")
def test_a_program_takes_any_size_and_number_of_images(tmp_path, detector):
    file = tmp_path / "student.pt2"
    assert write_program(graph_of(detector, "BGR"), file, NAMES, SIZE) <= 1e-4
    note = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=note).module()
    assert json.loads(note["metadata.json"])["names"] == NAMES
    assert compare(graph_of(detector, "BGR"), program, Case(3, 1.3, 0.8, ragged=True), SIZE, "it") <= 1e-4


@pytest.mark.usefixtures("once")
def test_an_onnx_file_takes_any_size_and_number_of_images(tmp_path, detector):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "student.onnx"
    assert write_onnx(graph_of(detector, "BGR"), file, NAMES, SIZE) <= 1e-4
    session = onnxruntime.InferenceSession(file)
    assert json.loads(session.get_modelmeta().custom_metadata_map["names"]) == NAMES
    assert [axis if isinstance(axis, str) else int(axis) for axis in session.get_inputs()[0].shape] == [
        "batch",
        3,
        "height",
        "width",
    ]
    images, sizes = make_case(Case(2, 1.3, 0.8), graph_of(detector, "BGR"), SIZE)
    boxes, scores, labels = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
    with torch.no_grad():
        expected = graph_of(detector, "BGR")(images, sizes)
    assert boxes.shape == expected[0].shape and labels.dtype == "int64"
    assert abs(scores - expected[1].numpy()).max() < 1e-4


class Shifted(nn.Module):
    """A graph whose boxes are a little off."""

    def __init__(self, graph: nn.Module, amount: float):
        super().__init__()
        self.graph, self.amount = graph, amount
        self.multiple, self.most_images, self.smallest = graph.multiple, graph.most_images, graph.smallest

    def forward(self, images, sizes):
        boxes, scores, labels = self.graph(images, sizes)
        return boxes + self.amount, scores, labels


def test_a_file_that_detects_something_else_is_not_left_there(tmp_path, detector):
    graph, wrong = graph_of(detector, "BGR"), Shifted(graph_of(detector, "BGR"), 0.5)
    with pytest.raises(CheckpointError, match="differs from PyTorch's"):
        compare(graph, wrong, CASES[0], SIZE, "it")
    assert compare(graph, Shifted(graph, 1e-3), CASES[0], SIZE, "it") > 1e-6


def test_detectors_without_a_graph_are_refused():
    with pytest.raises(ConfigError, match="Linear cannot be exported as a graph"):
        graph_of(nn.Linear(2, 2), "RGB")


def test_an_exporter_that_fails_is_quoted(tmp_path):
    class Stubborn(nn.Module):
        multiple, most_images, smallest = 1, None, 32

        def forward(self, images, sizes):
            return images if images.float().mean() > 0 else sizes

    with pytest.raises(ConfigError, match=r"--format program: torch .* cannot export this detector"):
        write_program(Stubborn(), tmp_path / "x.pt2", NAMES, SIZE)
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_graph_of_a_detector_of_transformers_detects_what_it_does(kind, tmp_path):
    pytest.importorskip("transformers")
    found = build_student(tmp_path, kind).eval()
    images, sizes = example(2, 72, 96)
    with torch.no_grad():
        boxes, scores, labels = graph_of(found, "BGR")(images, sizes)
        expected = found([{"image": image.flip(0), "height": 72, "width": 96} for image in images])
    check_detections(boxes, scores, labels, expected)


def test_each_image_of_a_batch_is_stretched_as_it_is_alone():
    images, _ = example(3, 40, 56)
    sizes = torch.tensor([[40, 56], [17, 56], [40, 3]])
    found = stretch_each(images, sizes, (24, 32))
    for image, (height, width), result in zip(images, sizes.tolist(), found, strict=True):
        torch.testing.assert_close(result, stretch(image[:, :height, :width], (24, 32)), rtol=0, atol=1e-3)


def test_r_cnns_without_the_usual_heads_are_refused():
    found = convolutional("faster_rcnn")
    found.roi_heads = nn.Identity()
    with pytest.raises(ConfigError, match=r"This R-CNN has RPN and Identity.*--format safetensors"):
        graph_of(found, "BGR")


def test_suppression_keeps_the_best_of_each_group():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40]])
    scores, group = torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 1, 0])
    assert best_of_each(boxes, scores, group, 0.5).tolist() == [1, 2, 3]
    assert best_of_each(boxes, scores, group, 0.5, most=2).tolist() == [1, 2]
    assert best_of_each(boxes, scores, group, 0.9).tolist() == [1, 2, 3, 0]
    assert best_of_each(boxes[:0], scores[:0], group[:0], 0.5, most=2).tolist() == []


class Suppressing(nn.Module):
    def forward(self, boxes, scores):
        kept = best_of_each(boxes, scores, (scores * 3).long(), 0.5, most=4)
        chosen = boxes[kept]
        return chosen[(chosen > 0).all(-1)], scores[kept]


def test_suppression_is_traced_for_any_number_of_boxes():
    boxes, scores = torch.rand(40, 4).cumsum(1), torch.rand(40)
    number = {0: torch.export.Dim("number", min=2)}
    program = torch.export.export(Suppressing(), (boxes, scores), dynamic_shapes=(number, number)).module()
    for count in (40, 9, 2):
        inputs = boxes[:count], scores[:count]
        assert all(torch.equal(*pair) for pair in zip(program(*inputs), Suppressing()(*inputs), strict=True))


class Runtime:
    """An onnxruntime that cannot read what was optimised, or nothing."""

    __version__ = "0"
    SessionOptions = type("SessionOptions", (), {})

    def __init__(self, readable):
        self.readable = readable

    def InferenceSession(self, content, options, providers):
        if content not in self.readable:
            raise ValueError("a node input is missing")
        return content


@pytest.mark.parametrize("readable", [[b"optimised"], [b"plain"], []])
def test_a_file_that_cannot_be_read_is_written_without_the_optimiser(readable, detector, monkeypatch):
    def export(*_, optimize, **__):
        content = b"optimised" if optimize else b"plain"
        proto = type("Proto", (), {"SerializeToString": lambda self: content})()
        return type("Program", (), {"model": type("Model", (), {"metadata_props": {}}), "model_proto": proto})

    monkeypatch.setattr(torch.onnx, "export", export)
    arguments = Runtime(readable), None, graph_of(detector, "BGR"), NAMES
    if readable:
        assert writing._build_session(*arguments)[0] == readable[0]
    else:
        with pytest.raises(ConfigError, match=r"cannot read what torch .* a node input is missing .*--format program"):
            writing._build_session(*arguments)
