"""Detectors of this project as folders that the library reads."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import detr_distill
from detr_distill.config.build import build_config
from detr_distill.config.detecting import read_detecting_yaml
from detr_distill.errors import CheckpointError, ConfigError
from detr_distill.hugging_face import leaving, registration
from detr_distill.hugging_face.as_library import find_library_form
from detr_distill.hugging_face.leaving import compare, find_form, write_detector_folder

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, SPREAD, make_inputs, randomise, small_cfg
from helpers.students import STUDENTS, digits_cfg
from torch import nn

transformers = pytest.importorskip("transformers")

NAMES = [f"class {number}" for number in range(5)]
# Unlike in each channel, so that none can take another's place.
UNLIKE = {"MODEL__PIXEL_MEAN": [70.0, 80.0, 90.0], "MODEL__PIXEL_STD": [50.0, 60.0, 70.0]}
LIBRARY = ["detr_r18", "deformable_r18_two_stage"]
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "none", "MODEL.DETR.NUM_CLASSES", "5", "MODEL.DETR.NUM_QUERIES", "9"),
    *("MODEL.DETR.HIDDEN_DIM", "32", "MODEL.DETR.NUM_HEADS", "2", "MODEL.DETR.FFN_DIM", "24"),
    *(
        "INPUT.MIN_SIZE_TEST",
        "96",
        "MODEL.DETR.ENCODER.NUM_LAYERS",
        "1",
        "MODEL.DETR.DECODER.NUM_LAYERS",
        "2",
        "INPUT.FORMAT",
        "BGR",
    ),
    *("MODEL.PIXEL_MEAN", "[70.0, 80.0, 90.0]", "MODEL.PIXEL_STD", "[50.0, 60.0, 70.0]"),
]


def build(cfg) -> nn.Module:
    # An AdaMixer with larger weights makes much of the last digits.
    is_touchy = cfg.MODEL.DETR.DECODER.NAME == "AdaMixerDecoder"
    return randomise(build_model(cfg), spread=0.05 if is_touchy else SPREAD).eval()


def leave(cfg, detector, folder):
    """The class in which a detector leaves, and the model that the library reads."""
    kind, difference = write_detector_folder(cfg, detector, find_form(cfg, detector), NAMES, folder)
    assert difference < 1e-5
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True).eval()
    assert list(model.config.id2label.values()) == NAMES
    return kind, model


@torch.no_grad()
def check_detections(detector, model, folder, size):
    """The library's image processor and post-processing find what the detector does on an image of the test size."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    (entry,) = make_inputs((size,), (1,))
    image = entry["image"].to(torch.uint8)
    expected = detector([{"image": image}])[0]["instances"]
    pixels = processor(images=image.flip(0), return_tensors="pt")
    found = processor.post_process_object_detection(model(**pixels), threshold=0.0, target_sizes=[size])[0]
    count = min(len(expected), len(found["scores"]), 5)
    assert count == 5
    found = {name: values[found["scores"].argsort(descending=True)] for name, values in found.items()}
    assert torch.allclose(found["scores"][:count], expected.scores[:count], atol=1e-4)
    assert torch.equal(found["labels"][:count], expected.pred_classes[:count])
    expected.pred_boxes.clip(size)
    found["boxes"][:, 0::2].clamp_(0, size[1]), found["boxes"][:, 1::2].clamp_(0, size[0])
    assert torch.allclose(found["boxes"][:count], expected.pred_boxes.tensor[:count], atol=1e-2)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_detector_leaves_in_our_class_where_the_library_has_none(name, tmp_path):
    cfg = digits_cfg(name, **UNLIKE)
    detector = build(cfg)
    kind, model = leave(cfg, detector, tmp_path / "folder")
    assert kind == "DetrDistillForObjectDetection"
    check_detections(detector, model, tmp_path / "folder", (96, 128))


@pytest.mark.parametrize("name", LIBRARY)
def test_a_detector_leaves_in_the_class_that_the_library_has(name, tmp_path):
    cfg = build_config(str(ROOT / f"configs/detr/{name}.yaml"), SMALL)
    detector = build(cfg)
    kind, model = leave(cfg, detector, tmp_path / "folder")
    assert kind == type(model).__name__ and type(model).__module__.startswith("transformers.")
    check_detections(detector, model, tmp_path / "folder", (96, 128))


@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        ("dab_r18", [], r"LOGIT_EPSILON is 0\.001, and there it is 1e-05 \(append"),
        ("conditional_dc5_r18", [], "RES5_DILATION is 2"),
        ("conditional_r18", ["MODEL.DETR.POSITION_TEMPERATURE", "20.0"], "POSITION_TEMPERATURE is 20.0"),
        ("detr_r18", ["MODEL.DETR.LOSS.CLASSIFICATION", "focal"], "CLASSIFICATION is focal"),
        ("dn_r18", [], "no network of DabEncoder, DabDecoder, UnknownLabelQueries"),
    ],
)
def test_the_difference_from_the_library_is_named(name, keys, reason):
    cfg = build_config(str(ROOT / f"configs/detr/{name}.yaml"), [*SMALL, *keys])
    found = find_library_form(cfg, build_model(cfg))
    assert isinstance(found, str)
    assert re.search(reason, found)


def test_training_groups_stay_behind(tmp_path):
    cfg = small_cfg(MODEL__DETR__TRAINING_GROUPS=["GroupQueries"])
    detector = build(cfg)
    _, model = leave(cfg, detector, tmp_path / "folder")
    assert any("training_groups" in name for name in detector.state_dict())
    assert not any("training_groups" in name for name in model.state_dict())
    text = model.config.configuration
    assert read_detecting_yaml(text).MODEL.DETR.TRAINING_GROUPS == [] and "OUTPUT_DIR" not in text


def test_a_folder_that_differs_is_not_left_there(tmp_path, monkeypatch):
    cfg = small_cfg()
    folder = tmp_path / "folder"
    leave(cfg, build(cfg), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = build(small_cfg(MODEL__DETR__NUM_HEADS=4))  # than the configuration says
    with pytest.raises(CheckpointError, match="reads from this folder differs from the detector by"):
        write_detector_folder(cfg, other, find_form(cfg, other), NAMES, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_not_a_number_is_a_difference():
    def run(images, mask):
        return images.mean((2, 3)), torch.full((2, 1, 4), torch.nan)

    with pytest.raises(CheckpointError, match="differs"):
        compare(run, run, leaving.CHECKED, "it")


def test_convolutional_detectors_are_refused():
    with pytest.raises(ConfigError, match=r"Linear cannot leave as a folder .* --format onnx or program"):
        find_form(small_cfg(), nn.Linear(2, 2))


def test_the_library_is_imported_by_what_it_has_imported_alone():
    """So ``import detr_distill`` does not take the time that it takes."""
    folder = Path(detr_distill.__file__).parent
    at_once = {
        file.stem
        for file in folder.rglob("*.py")
        if any(line.startswith(("import transformers", "from transformers")) for line in file.read_text().splitlines())
    }
    assert at_once == {module.rpartition(".")[2] for module in registration.OURS.values()}


def test_a_module_of_ours_follows_one_of_theirs(tmp_path, monkeypatch):
    for name, text in {
        "theirs": "value = 1",
        "ours": "import theirs; value = theirs.value + 1",
        "broken": "import no",
    }.items():
        (tmp_path / f"{name}_of_a_test.py").write_text(text.replace("theirs", "theirs_of_a_test"))
    (tmp_path / "others_of_a_test.py").write_text("value = 3")
    pairs = {"theirs_of_a_test": "ours_of_a_test", "others_of_a_test": "broken_of_a_test"}
    monkeypatch.setattr(registration, "OURS", pairs)
    monkeypatch.setattr(sys, "meta_path", [registration._AfterTheirs(), *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("theirs_of_a_test")
    assert sys.modules["ours_of_a_test"].value == 2
    assert theirs.__spec__.loader is theirs.__loader__ and not isinstance(theirs.__loader__, registration._Followed)
    assert importlib.import_module("others_of_a_test").value == 3, "a fault of ours is none of theirs"
