"""The teacher that is its student's moving average."""

from __future__ import annotations

import pickle

from detr_distill.distill.students import student_of
from detr_distill.distill.teachers.ema import EmaTeacher
from detr_distill.engine.trainer import DistillTrainer
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.convolutional import CASES
from helpers.distill.running import whole_and_resumed

EMA = {
    "MODEL__META_ARCHITECTURE": "DistillDetector",
    "MODEL__DISTILL__TEACHER__NAME": "EmaTeacher",
    "MODEL__DISTILL__MATCHERS": "('AdaptiveMatcher', 'FixedMatcher')",
}


@pytest.fixture
def make_cfg(tmp_path, tiny_digits):
    def make(name, **keys):
        settings = {
            "DATASETS__TRAIN": (tiny_digits,), "DATASETS__TEST": (), "MODEL__DETR__NUM_CLASSES": 10,
            "MODEL__DETR__DROPOUT": 0.1, "SOLVER__IMS_PER_BATCH": 2, "SOLVER__MAX_ITER": 6,
            "SOLVER__CHECKPOINT_PERIOD": 3, "TEST__EVAL_PERIOD": 0, "OUTPUT_DIR": str(tmp_path / name),
        }  # fmt: skip
        return small_cfg(**{**EMA, **settings, **keys})

    return make


def detector_with_norm():
    """A small detector, and a normalisation layer of it with 8 channels."""
    detector = randomise(build_model(small_cfg()))
    return detector, first_norm(detector)


def first_norm(detector) -> torch.nn.BatchNorm2d:
    return next(module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_the_average_by_hand():
    """Three steps of a weight that is 1, 2 and 3, from 0, with decay 0.5; a buffer is copied."""
    detector, norm = detector_with_norm()
    torch.nn.init.zeros_(norm.weight)
    teacher = EmaTeacher(student=student_of(detector), decay=0.5, ramp_up=False)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.0)
    for iteration, value in enumerate((1.0, 2.0, 3.0)):
        torch.nn.init.constant_(norm.weight, value)
        norm.running_mean.fill_(value)
        norm.num_batches_tracked += 1
        teacher.after_optimizer_step(optimizer, iteration)
    average = first_norm(teacher.average)
    assert average.weight.tolist() == pytest.approx([0.125 * 1 + 0.25 * 2 + 0.5 * 3] * 8)
    assert (average.running_mean == 3.0).all() and average.num_batches_tracked == 3


def test_the_ramp_ends_at_the_decay():
    """(1 + n) / (10 + n) is 0.1 at step 0 and above 0.9 at step 100."""
    detector, norm = detector_with_norm()
    for iteration, decay in ((0, 0.1), (100, 0.5)):
        teacher = EmaTeacher(student=student_of(detector), decay=0.5)
        average = first_norm(teacher.average)
        torch.nn.init.zeros_(average.weight)
        torch.nn.init.ones_(norm.weight)
        teacher.after_optimizer_step(torch.optim.SGD(detector.parameters(), lr=0.0), iteration)
        assert average.weight.tolist() == pytest.approx([1 - decay] * 8)


def test_a_skipped_step_is_none():
    detector, norm = detector_with_norm()
    teacher = EmaTeacher(student=student_of(detector), decay=0.5)
    average = first_norm(teacher.average)
    before = average.weight.clone()
    torch.nn.init.constant_(norm.weight, 7.0)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.0)
    optimizer.found_inf = torch.ones(())  # as loss scaling tells a fused optimizer
    teacher.after_optimizer_step(optimizer, 0)
    assert torch.equal(average.weight, before)
    optimizer.found_inf = torch.zeros(())
    teacher.after_optimizer_step(optimizer, 0)
    # The ramp's first decay is 1 / 10.
    torch.testing.assert_close(average.weight, 0.1 * before + 0.9 * 7.0)


def test_an_average_equal_to_its_student_has_nothing_to_teach(build_distiller):
    model = build_distiller(EMA, MODEL__DETR__DROPOUT=0.0, MODEL__DISTILL__MATCHERS="('FixedMatcher',)")
    model.teacher.restart()
    model.student.backbone.eval()  # its normalisation, as the teacher's
    losses = model(make_inputs(), iteration=0)
    assert all(
        losses[name].abs() < 1e-4 for name in losses if name.startswith(("loss_distill_box", "loss_distill_giou"))
    )
    assert all(losses[name].abs() < 1e-4 for name in losses if "attention" in name)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert not model.teacher.average.training


def test_it_changes_after_every_optimizer_step_and_only_then(make_cfg):
    cfg = make_cfg("accumulated", SOLVER__ACCUMULATE=3, SOLVER__MAX_ITER=2)
    torch.manual_seed(0)
    trainer = DistillTrainer(cfg)
    teacher, seen = trainer.model.teacher, []
    name, own = next(iter(trainer.model.student.named_parameters()))
    average = teacher.average.get_parameter(name)
    # Before and after each step of the optimizer; hooks run in the order in which they were registered.
    for register in (trainer.optimizer.register_step_pre_hook, trainer.optimizer.register_step_post_hook):
        register(lambda *_: seen.append(average.detach().clone()))
    trainer.optimizer.register_step_post_hook(lambda *_: seen.append(own.detach().clone()))
    trainer.train()
    start, first, student, before, second, later = seen
    assert torch.allclose(first, start.lerp(student, 1 - 1 / 10)) and not torch.equal(first, start)
    assert torch.equal(before, first), "micro-batches leave it alone"
    assert torch.allclose(second, first.lerp(later, 1 - 2 / 11)) and not torch.equal(second, first)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(parameter) in optimized for parameter in teacher.parameters())


def test_a_resumed_run_is_the_whole_run_and_the_students_file_has_no_teacher(make_cfg, tmp_path):
    whole, _ = whole_and_resumed(make_cfg, stop_after=3)
    assert any(name.startswith("teacher.average.") for name in whole.model.state_dict())
    student = torch.load(tmp_path / "whole/student_final.pth")["model"]
    assert set(student) == set(build_model(_plain(make_cfg("plain"))).state_dict())


def _plain(cfg):
    cfg.MODEL.META_ARCHITECTURE = "DetrDetector"
    return cfg


def test_weights_without_an_average_start_it_from_the_student(make_cfg, tmp_path):
    """A plain detector's file, and a backbone's, which is the student's although the average has one alike."""
    cfg = make_cfg("started", SOLVER__MAX_ITER=1)
    plain = randomise(build_model(_plain(cfg.clone())), 4)
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    backbone = {name: value.numpy() for name, value in plain.backbone.state_dict().items()}
    (tmp_path / "backbone.pkl").write_bytes(pickle.dumps({"model": backbone, "matching_heuristics": True}))
    for file in ("plain.pth", "backbone.pkl"):
        cfg.MODEL.WEIGHTS = str(tmp_path / file)
        trainer = DistillTrainer(cfg)
        trainer.resume_or_load(resume=False)
        own = dict(trainer.model.student.named_parameters())
        for name, value in trainer.model.teacher.average.named_parameters():
            assert torch.equal(value, own[name]), (file, name)
        loaded = next(name for name in own if name.startswith("backbone."))
        assert torch.equal(own[loaded], plain.state_dict()[loaded]), file


def test_training_groups_are_not_averaged(build_distiller):
    keys = {"MODEL__DETR__TRAINING_GROUPS": "('GroupQueries',)"}
    model = build_distiller(EMA, keys)
    assert len(model.student.training_groups) == 1 and len(model.teacher.average.training_groups) == 0
    assert sum(value.numel() for value in model(make_inputs(), iteration=0).values()) > 0


@pytest.mark.parametrize(("key", "value"), [("CONFIG_FILE", "other"), ("WEIGHTS", "other"), ("CLASS_NAMES", ["other"])])
def test_another_network_is_not_silently_ignored(key, value, make_cfg):
    with pytest.raises(ConfigError, match=rf"TEACHER.{key} is .*other.*, but EmaTeacher is the student's own average"):
        build_model(make_cfg("ema", **{f"MODEL__DISTILL__TEACHER__{key}": value}))


def test_a_convolutional_student_may_have_its_average_as_teacher():
    """RetinaNet's anchors follow what its average detects."""
    cfg = CASES["retinanet"]()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.005
    node = cfg.MODEL.DISTILL
    cfg.MODEL.META_ARCHITECTURE, node.STUDENT_ARCHITECTURE, node.TEACHER.NAME = (
        "DistillDetector", "RetinaNet", "EmaTeacher",
    )  # fmt: skip
    node.MATCHERS, node.LOSSES = ["OverlapMatcher"], ["PredictionLoss"]
    node.OVERLAP_MATCHER.SCORE_THRESHOLD = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with EventStorage(0):
        losses = model(make_inputs())
    assert losses["loss_distill_class_overlap"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
