"""What the export command is given."""

from __future__ import annotations

from detr_distill.commands import export_student

import torch
from helpers.builders import ROOT

from bad_input import Row

CONDITIONAL = str(ROOT / "configs/digits/conditional_teacher.yaml")
TEACHER = str(ROOT / "weights/digits_teacher.pth")


def export(output, *more, names=None):
    """The command's own error for a checkpoint of the shipped teacher."""

    def call(folder):
        weights = TEACHER
        if names is not None:
            weights = str(folder / "weights.pth")
            torch.save({**torch.load(TEACHER, weights_only=True), "class_names": names}, weights)
        arguments = ["--weights", weights, "--output", str(folder / output), *more]
        export_student.run(export_student.argument_parser().parse_args(arguments))

    return call


ROWS = [
    Row("graph_without_configuration", export("x.onnx"), r"--format onnx holds the whole detector.*config\.yaml"),
    Row("configuration_for_weights", export("x.pth", "--config-file", CONDITIONAL), "pth holds weights alone"),
    Row("suffix_of_another_format", export("x.pth", "--format", "onnx"), r"x\.pth: the file's name must end in \.onnx"),
    Row("suffix_of_no_format", export("x.engine"), r"must end in \.pth, \.safetensors, \.onnx, \.pt2"),
    Row(
        "size_of_a_graph",
        export("x.pt2", "--config-file", CONDITIONAL, "--size", "640"),
        "--size is '640'; give HEIGHTxWIDTH",
    ),
    Row(
        "class_names_of_another_number",
        export("x.onnx", "--config-file", CONDITIONAL, names=["a", "b"]),
        "tell 2 class names, and the detector has 10",
    ),
    Row(
        "graph_of_an_rcnn",
        export("x.onnx", "--config-file", str(ROOT / "configs/digits/faster_rcnn_student.yaml")),
        "GeneralizedRCNN cannot be exported as a graph",
    ),
]
