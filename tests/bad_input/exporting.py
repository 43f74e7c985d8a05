"""What the export command is given."""

from __future__ import annotations

import sys

from detr_distill.commands import export_student
from detr_distill.options.tools import export_parser

import pytest
import torch
from helpers.builders import ROOT

from bad_input import Row

CONDITIONAL = str(ROOT / "configs/digits/conditional_teacher.yaml")
TEACHER = str(ROOT / "weights/digits_teacher.pth")


CASCADE = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.RPN.POST_NMS_TOPK_TEST", "100"]


def export(output, *more, names=None):
    """The command's own error for a checkpoint of the shipped teacher."""

    def call(folder):
        weights = TEACHER
        if names is not None:
            weights = str(folder / "weights.pth")
            torch.save({**torch.load(TEACHER, weights_only=True), "class_names": names}, weights)
        arguments = ["--weights", weights, "--output", str(folder / output), *more]
        export_student.run(export_parser().parse_args(arguments))

    return call


def in_the_way(folder):
    (folder / "x").write_text("important")
    export("x", "--format", "transformers", "--config-file", CONDITIONAL)(folder)


def without_onnx(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        export("x.onnx", "--config-file", CONDITIONAL)(folder)


def into_a_folder_of(*files):
    """A folder of transformers that would take the place of one with these files."""

    def call(folder):
        (folder / "x").mkdir()
        for file in files:
            (folder / "x" / file).write_text("important")
        export("x", "--format", "transformers", "--config-file", CONDITIONAL)(folder)

    return call


def of_digits(output, form, name, *more):
    return export(output, "--format", form, "--config-file", str(ROOT / f"configs/digits/{name}_student.yaml"), *more)


ROWS = [
    Row("graph_without_configuration", export("x.onnx"), r"--format onnx holds the whole detector.*config\.yaml"),
    Row("keys_without_configuration", export("x.pth", "MODEL.DETR.NUM_QUERIES", "3"), "KEY VALUE changes a config"),
    Row("size_of_weights", export("x.pth", "--size", "64x64"), "--size is of the images that onnx and program"),
    Row(
        "weights_of_another_configuration",
        export("x", "--format", "pth", "--config-file", CONDITIONAL, "MODEL.DETR.NUM_QUERIES", "3"),
        "does not fit DetrDetector",
    ),
    Row(
        "suffix_of_another_format",
        export("x.pth", "--format", "onnx"),
        r"x\.pth ends as a file of pth does, and --format is onnx.*ends in \.onnx",
    ),
    Row("suffix_of_a_file_for_a_folder", export("x.onnx", "--format", "transformers"), "--format is transformers"),
    Row(
        "suffix_of_no_format", export("x.engine"), r"must end in \.pth, \.safetensors, \.onnx, \.pt2, or --format must"
    ),
    Row("folder_of_something_else", into_a_folder_of("photo.jpg"), r"holds other files \(photo\.jpg\) and no config"),
    Row("file_where_a_folder_goes", in_the_way, "that is a file. Name a folder to write"),
    Row("runtime_that_is_missing", without_onnx, r"--format onnx needs .* pip install 'detr_distill\[onnx\]'"),
    Row(
        "size_of_a_graph",
        export("x.pt2", "--config-file", CONDITIONAL, "--size", "640"),
        "--size is '640'; give HEIGHTxWIDTH",
    ),
    Row(
        "odd_size_of_a_pyramid",
        of_digits("x", "onnx", "retinanet", "--size", "100x140"),
        r"--size is '100x140', and this detector takes .* multiples of 16 pixels\. Give 96x144",
    ),
    Row(
        "class_names_of_another_number",
        export("x.onnx", "--config-file", CONDITIONAL, names=["a", "b"]),
        "tell 2 class names, and the detector has 10",
    ),
    Row(
        "folder_of_a_convolutional_detector",
        of_digits("x", "transformers", "retinanet"),
        "RetinaNet cannot leave as a folder of transformers.* --format onnx or program",
    ),
    Row(
        "graph_of_a_cascade",
        of_digits("x.onnx", "onnx", "faster_rcnn", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *CASCADE),
        "This R-CNN has RPN and CascadeROIHeads.*--format safetensors",
    ),
]
