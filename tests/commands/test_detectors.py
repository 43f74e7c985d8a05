"""What stands at a path is recognised."""

import json

from detr_distill.commands.recipe.detectors import find_detector
from detr_distill.commands.recipe.methods import given_by_teacher
from detr_distill.distill.side import EDGES, PREDICTIONS, QUERIES

import pytest
from helpers.builders import ROOT


def run_in(folder, config):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"_BASE_: {ROOT}/configs/digits/{config}.yaml\n")
    (folder / "model_final.pth").write_bytes(b"weights")
    return folder


def test_the_folder_of_a_run(tmp_path):
    found = find_detector(str(run_in(tmp_path / "plain", "dino_student")), "--teacher")
    assert (found.teacher, found.opts) == ("FrozenDetector", ())
    assert found.weights == str(tmp_path / "plain" / "model_final.pth")
    assert found.config_file == str(tmp_path / "plain" / "config.yaml") and QUERIES in given_by_teacher(found)


def test_of_a_distilling_run_the_student(tmp_path):
    found = find_detector(str(run_in(tmp_path / "taught", "conditional_to_retinanet")), "--teacher")
    assert found.opts == ("MODEL.META_ARCHITECTURE", "RetinaNet") and given_by_teacher(found) == {PREDICTIONS}
    checkpoint = find_detector(str(tmp_path / "taught" / "model_final.pth"), "--teacher")
    assert (checkpoint.weights, checkpoint.opts) == (found.weights, found.opts)


def test_a_checkpoint_and_a_configuration_of_the_project():
    found = find_detector("weights/digits_teacher.pth", "--teacher", "configs/digits/conditional_teacher.yaml")
    assert found.weights == str(ROOT / "weights" / "digits_teacher.pth")
    assert found.config_file == str(ROOT / "configs" / "digits" / "conditional_teacher.yaml")


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"model_type": "d_fine"}, {PREDICTIONS, QUERIES, EDGES}),
        ({"model_type": "d_fine", "reg_scale": 8.0}, {PREDICTIONS, QUERIES}),
        ({"model_type": "rt_detr_v2"}, {PREDICTIONS, QUERIES}),
        ({"model_type": "lw_detr"}, {PREDICTIONS}),
    ],
)
def test_a_folder_of_transformers(tmp_path, settings, given):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "config.yaml").write_text("of: its authors")
    found = find_detector(str(tmp_path), "--teacher")
    assert (found.teacher, found.weights) == ("TransformersDetector", str(tmp_path))
    assert given_by_teacher(found) & {PREDICTIONS, QUERIES, EDGES} == given


def test_predictions_as_a_folder_and_as_a_file(tmp_path):
    (tmp_path / "predictions.json").write_text("{}")
    (tmp_path / "results.json").write_text('[{"image_id": 1, "score": 0.5}]')
    for path in (tmp_path, tmp_path / "results.json"):
        found = find_detector(str(path), "--teacher")
        assert (found.teacher, found.weights) == ("PredictionsFile", str(path))
        assert given_by_teacher(found) == {PREDICTIONS}
