"""Whose class names a teacher has: those it is given, of its own sets, of its folder; or it is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext

from detr_distill.data import register_datasets
from detr_distill.distill.teachers.configuration import teacher_class_names
from detr_distill.distill.teachers.label_encoder.label_map import LabelMapEncoder
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.builders import small_cfg
from helpers.data.plain_sets import CLASSES, write_set

THREE = {"MODEL__DETR__NUM_CLASSES": 3}
NAMES = "MODEL__DISTILL__TEACHER__CLASS_NAMES"


@pytest.fixture(scope="module")
def student_set(tmp_path_factory):
    """A registered set of three classes."""
    entry = write_set(tmp_path_factory.mktemp("student"), "names_of_the_student", images=1)
    register_datasets([entry])
    yield entry
    DatasetCatalog.remove(entry[0])
    MetadataCatalog.remove(entry[0])


@pytest.fixture
def build(build_distiller, save_teacher, student_set):
    """Builds a student of three classes whose teacher has keys of its own in its file."""

    def make(teacher=None, **keys):
        return build_distiller(
            save_teacher(**{**THREE, **(teacher or {})}), **{"DATASETS__TRAIN": (student_set[0],), **THREE, **keys}
        )

    return make


@pytest.mark.parametrize("name", ["names_of_the_teacher", "names_of_the_student"])
def test_the_teachers_own_sets_count(build, tmp_path, name, student_set):
    """Unregistered as they stay, and also where one has the name of a set of the student's."""
    own = write_set(tmp_path, name, images=1, classes=CLASSES[::-1])
    classes = build({"DATASETS__TRAIN": (name,), "DATASETS__REGISTER": [own]}).teacher.classes
    assert (classes.student, classes.teacher) == ((0, 1, 2), (2, 1, 0))
    assert MetadataCatalog.get(student_set[0]).thing_classes == list(CLASSES)
    assert "names_of_the_teacher" not in DatasetCatalog


def test_a_set_that_both_have_is_one(build, student_set):
    assert build({"DATASETS__TRAIN": (student_set[0],)}).teacher.classes.identical
    assert build({"DATASETS__TRAIN": (student_set[0],), "DATASETS__REGISTER": [student_set]}).teacher.classes.identical


@pytest.mark.parametrize(
    ("name", "register"),
    [
        ("names_elsewhere", []),
        ("names_elsewhere", [["names_elsewhere", "gone.json", "gone"]]),
        ("names_of_the_student", [["names_of_the_student", "gone.json", "gone"]]),
    ],
)
def test_names_that_cannot_be_known_are_refused(build, name, register):
    """Nothing says what the teacher's set is, or its file is not here."""
    with pytest.raises(ConfigError, match=rf"TRAIN \['{name}'\] of its file .*TEACHER\.CLASS_NAMES \"\['red', "):
        build({"DATASETS__TRAIN": (name,), "DATASETS__REGISTER": register})


def test_names_that_are_given_win(build):
    teacher = {"DATASETS__TRAIN": ("names_elsewhere",)}
    assert build(teacher, **{NAMES: list(CLASSES)}).teacher.classes.identical
    assert build(teacher, **{NAMES: ["blue", "green", "red"]}).teacher.classes.teacher == (2, 1, 0)
    with pytest.raises(ConfigError, match=r"from MODEL\.DISTILL\.TEACHER\.CLASS_NAMES, have red more than once"):
        build(teacher, **{NAMES: ["red"] * 3})


def test_maps_are_learned_whatever_the_classes(build):
    """A loss on maps compares no classes, and asks for no names."""
    keys = {"MODEL__DISTILL__LOSSES": ["FeatureLoss"], "MODEL__DISTILL__MATCHERS": []}
    assert build({"DATASETS__TRAIN": ("names_elsewhere",)}, **keys).teacher.classes.identical


def test_a_folder_without_names_is_refused(build_distiller, student_set, tmp_path):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=12, hidden_sizes=[12, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_ffn_dim=48,
        encoder_attention_heads=4, d_model=32, num_queries=9, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=48,
        decoder_layers=3, decoder_attention_heads=4, num_labels=3, num_denoising=0,
    )  # fmt: skip
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "do_resize": False}))
    keys = {
        "MODEL__META_ARCHITECTURE": "DistillDetector", "MODEL__DISTILL__TEACHER__NAME": "TransformersDetector",
        "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path), "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
        "MODEL__DISTILL__LOSSES": ["PredictionLoss"], "DATASETS__TRAIN": (student_set[0],), **THREE,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"id2label of .*config\.json does not tell them.*CLASS_NAMES"):
        build_distiller(keys)
    assert build_distiller(keys, {NAMES: ["green", "red", "blue"]}).teacher.classes.teacher == (1, 0, 2)


def test_a_label_encoders_two_trainings_have_the_same_classes(student_set, tmp_path):
    """It knows a class by its index; the first training's configuration lies beside its weights."""
    cfg = small_cfg(
        DATASETS__TRAIN=(student_set[0],), MODEL__DISTILL__TEACHER__WEIGHTS=str(tmp_path / "model_final.pth")
    )
    (tmp_path / "model_final.pth").touch()
    LabelMapEncoder.check_files(cfg)
    for classes, refused in ((CLASSES, False), (CLASSES[::-1], True)):
        own = write_set(tmp_path / str(refused), "names_of_the_first", images=1, classes=classes)
        first = small_cfg(DATASETS__TRAIN=(own[0],), DATASETS__REGISTER=[own])
        (tmp_path / "config.yaml").write_text(first.dump())
        with pytest.raises(ConfigError, match=r"\['blue', 'green', 'red'\]") if refused else nullcontext():
            LabelMapEncoder.check_files(cfg)
    (tmp_path / "config.yaml").write_text("nothing: of this package")
    LabelMapEncoder.check_files(cfg)


def test_names_are_of_the_file_that_the_weights_are_of(tmp_path, monkeypatch):
    """Of the project, named from another folder; or below the home folder."""
    torch.save({"model": {}, "class_names": ["a", "b"]}, tmp_path / "mine.pth")
    monkeypatch.setattr("detr_distill.config.files.SHIPPED", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("mine.pth", "~/mine.pth"):
        cfg = small_cfg(MODEL__DISTILL__TEACHER__WEIGHTS=path)
        assert teacher_class_names(cfg, cfg) == (("a", "b"), f"MODEL.DISTILL.TEACHER.WEIGHTS {path}")


def test_names_of_the_weights_are_told_where_the_teacher_set_is_not_here(student_set, tmp_path, caplog):
    torch.save({"model": {}, "class_names": ["a", "b"]}, tmp_path / "mine.pth")
    for name, told in ((student_set[0], False), ("elsewhere", True)):
        cfg = small_cfg(MODEL__DISTILL__TEACHER__WEIGHTS=str(tmp_path / "mine.pth"))
        cfg.DATASETS.TRAIN = (name,)
        caplog.clear()
        assert teacher_class_names(cfg, cfg)[0] == ("a", "b")
        assert ("['elsewhere'] of the teacher's file is not registered here: its classes are" in caplog.text) is told
