"""Detectors of transformers: folders, configurations and sizes that they cannot be built from."""

from __future__ import annotations

import json
import sys
from unittest import mock

from detectron2.modeling import build_model
from helpers.hugging_face import student_cfg

from bad_input import Row


def built(kind="rt_detr_v2", settings=None, **keys):
    def call(folder):
        return build_model(student_cfg(folder, kind, settings=settings, **keys))

    return call


def configured(text):
    def call(folder):
        (folder / "other.json").write_text(text)
        return built(MODEL__TRANSFORMERS__CONFIG=str(folder / "other.json"))(folder)

    return call


def without_library(folder):
    with mock.patch.dict(sys.modules, {"transformers": None}):
        return built()(folder)


def from_folder(**files):
    """A student from a folder of these files, by the names of which dots are underscores twice."""

    def call(folder):
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(json.dumps(content))
        return built(MODEL__TRANSFORMERS__CONFIG="", MODEL__TRANSFORMERS__FOLDER=str(folder))(folder)

    return call


FOLDER = "MODEL__TRANSFORMERS__FOLDER"
TYPE = {"model_type": "rt_detr_v2"}
ROWS = [
    Row("neither", built(MODEL__TRANSFORMERS__CONFIG=""), "FOLDER is '' and .*CONFIG is ''. Name one of them"),
    Row("both", built(**{FOLDER: "somewhere"}), "FOLDER is 'somewhere' and .*CONFIG is .*Name one of them"),
    Row("no_file", built(MODEL__TRANSFORMERS__CONFIG="none.json"), "CONFIG names none.json, which does not exist"),
    Row("no_json", configured("{"), "CONFIG.*other.json"),
    Row("no_type", configured("{}"), "other.json is of the model type 'None'. Known: rt_detr"),
    Row("another_type", configured(json.dumps({"model_type": "bert"})), "is of the model type 'bert'. Known: rt_detr"),
    Row("heads_of_3", built(settings={"decoder_attention_heads": 3}), "CONFIG .*rt_detr_v2.json: transformers cannot"),
    Row(
        "no_folder",
        built(MODEL__TRANSFORMERS__CONFIG="", **{FOLDER: "some/where"}),
        "FOLDER some/where: there is no such folder",
    ),
    Row("no_processor", from_folder(config__json=TYPE), "FOLDER .* lacks preprocessor_config.json"),
    Row(
        "no_weights",
        from_folder(config__json=TYPE, preprocessor_config__json={"do_normalize": False}),
        "FOLDER .* cannot be loaded",
    ),
    Row(
        "another_task",
        from_folder(
            config__json={**TYPE, "architectures": ["RTDetrV2Model"]}, preprocessor_config__json={"do_normalize": False}
        ),
        "FOLDER .*is of RTDetrV2Model, a model of another task",
    ),
    Row("no_size", built(MODEL__TRANSFORMERS__SIZE=[]), r"SIZE is empty, and a rt_detr_v2 does not look at the mask"),
    Row("odd_size", built(MODEL__TRANSFORMERS__SIZE=[100, 64]), r"SIZE is \[100, 64\], and .* multiples of 32"),
    Row("one_side", built(MODEL__TRANSFORMERS__SIZE=[64]), r"SIZE is \[64\], and .* takes \[height, width\]"),
    Row("softmax", built(MODEL__DETR__LOSS__CLASSIFICATION="softmax"), "CLASSIFICATION is 'softmax', .*varifocal"),
    Row("no_classes", built(MODEL__DETR__NUM_CLASSES=0), "NUM_CLASSES is 0"),
    Row("no_library", without_library, "TransformersStudent, which needs transformers: pip install transformers"),
]
