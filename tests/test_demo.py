"""The demonstration from end to end, with tiny models and few images."""

import json

from detr_distill.data import build_digits
from detr_distill.demo import run as demo
from detr_distill.engine.folder.lock import locked
from detr_distill.errors import ConfigError

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.engine.toy import untouched_loggers  # noqa: F401

KEYS = {"AP", "AP50", "AP75", "params", "iterations", "seconds"}
PICTURES = ("predictions", "pairs", "attention", "ap_over_iterations", "ap_over_seconds")


@pytest.fixture(scope="module")
def configurations(tmp_path_factory):
    """Command-line flags of two tiny students, and of a teacher with random weights."""
    folder = tmp_path_factory.mktemp("demo")
    entries = []
    for split, images in (("train", 20), ("val", 6)):
        digits = build_digits(folder, split, images)
        entries.append([f"demo_{split}", str(digits / "annotations" / "instances.json"), str(digits / "images")])
    data = {
        "DATASETS__REGISTER": entries,
        "DATASETS__TRAIN": ("demo_train",),
        "DATASETS__TEST": ("demo_val",),
        "MODEL__DETR__NUM_CLASSES": 10,
        "SOLVER__IMS_PER_BATCH": 2,
        "SOLVER__BASE_LR": 0.002,
    }
    teacher = small_cfg(**data)
    (folder / "teacher.yaml").write_text(teacher.dump())
    torch.save({"model": randomise(build_model(teacher), 1).state_dict()}, folder / "teacher.pth")
    (folder / "student.yaml").write_text(teacher.dump())
    distilled = small_cfg(
        **data,
        MODEL__META_ARCHITECTURE="DistillDetector",
        MODEL__DISTILL__TEACHER__CONFIG_FILE=str(folder / "teacher.yaml"),
        MODEL__DISTILL__TEACHER__WEIGHTS=str(folder / "teacher.pth"),
        MODEL__DISTILL__MATCHERS=("AdaptiveMatcher",),
        MODEL__DISTILL__LOSSES=("PredictionLoss",),
    )
    (folder / "distilled.yaml").write_text(distilled.dump())
    return ["--student-config", str(folder / "student.yaml"), "--distilled-config", str(folder / "distilled.yaml")]


@pytest.mark.usefixtures("untouched_loggers")
def test_trainings_are_compared_and_drawn(configurations, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.pictures, "DPI", 50)
    # An untrained network detects something everywhere, and all its labels are spread apart.
    monkeypatch.setattr(demo, "MOST_ROWS", 1)
    monkeypatch.setattr(demo, "SAMPLES", 2)
    output = tmp_path / "out"
    flags = [*configurations, "--output", str(output), "--iterations", "2", "--seed", "5"]
    demo.main(flags)
    results = json.loads((output / "results.json").read_text())
    for name in ("teacher", "student", "longer", "distilled"):
        assert set(results[name]) >= KEYS
        assert all(0 <= results[name][metric] <= 100 for metric in ("AP", "AP50", "AP75"))
    assert results["student"]["params"] == results["distilled"]["params"] > 0
    assert results["student"]["iterations"] == results["distilled"]["iterations"] == 2
    # The time of the file is the distilled student's; the plain one of that time trains for it.
    seconds = {name: results[name]["seconds"] for name in ("student", "distilled")}
    assert seconds["student"] > 0 and seconds["distilled"] > results["predicting_seconds"] > 0
    assert results["longer"]["iterations"] == round(2 * seconds["distilled"] / seconds["student"])
    assert (results["seed"], results["learning_rate"]) == (5, 0.002)
    for name in PICTURES:
        assert cv2.imread(str(output / f"{name}.png")).size > 10_000
    printed = capsys.readouterr().out
    assert "iteration 2/2" in printed and "distilled - student, same time" in printed
    assert "detr_distill.engine" not in printed
    assert (output / "student" / "log.txt").exists()
    # A folder that a user chose: the next demo renames what it finds.
    demo.start_afresh(output)
    assert (output / "student.old-1" / "config.yaml").exists() and not (output / "results.json").exists()


def test_the_demos_own_folder_is_emptied_without_asking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, other = tmp_path / demo.OUTPUT / "student", tmp_path / demo.OUTPUT / "notes"
    run.mkdir(parents=True)
    other.mkdir()
    demo.start_afresh(tmp_path / demo.OUTPUT)
    assert not run.exists() and other.exists()


def test_a_demo_that_runs_is_not_swept_away(tmp_path):
    with locked(tmp_path / "student"), pytest.raises(ConfigError, match=r"--output .*student is in use by process"):
        demo.start_afresh(tmp_path)


def failing(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(flags)
    assert caught.value.code == 1
    return capsys.readouterr().err


def test_missing_teacher_says_how_to_train_it(configurations, tmp_path, capsys):
    flags = [*configurations, "--output", str(tmp_path), "MODEL.DISTILL.TEACHER.WEIGHTS", "nowhere.pth"]
    error = failing(flags, capsys)
    assert "nowhere.pth are missing" in error and "python train_net.py --config-file" in error
    assert not any(tmp_path.iterdir())


def test_unequal_trainings_are_refused(configurations, tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text(f"_BASE_: {configurations[1]}\nSOLVER: {{BASE_LR: 0.5}}\n")
    error = failing(["--student-config", str(path), *configurations[2:], "--output", str(tmp_path)], capsys)
    assert "SOLVER.BASE_LR is 0.5 for the student and 0.002 for the distilled one" in error
