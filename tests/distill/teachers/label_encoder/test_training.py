"""Runs with label encoders: exact resume over every schedule, AMP, two processes, and a student of its own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.multiprocessing
from detectron2.modeling import build_model
from helpers.convolutional import CASES
from helpers.distill.running import losses_by_iteration, run, whole_and_resumed
from helpers.distill.two_processes import DISTILLED, OTHERS, WORLD, work
from helpers.distill.two_processes import build_model as build_spawned


@pytest.fixture
def make_cfg(tmp_path, tiny_digits):
    def make(case: str, name: str, **keys):
        cfg = CASES[case]()
        cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES = 10
        cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
        cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
        cfg.MODEL.DISTILL.TEACHER.NAME = "LabelEncoder"
        cfg.MODEL.DISTILL.MATCHERS, cfg.MODEL.DISTILL.LOSSES = [], ["FeatureLoss"]
        cfg.MODEL.DISTILL.FEATURE_LOSS.WEIGHT, cfg.MODEL.DISTILL.FEATURE_LOSS.DIVERGENCE = 50.0, "js_distance"
        cfg.MODEL.DISTILL.SCHEDULE.STUDENT_FROM = 2
        cfg.MODEL.DISTILL.SCHEDULE.STEPS, cfg.MODEL.DISTILL.SCHEDULE.FACTORS = ["lr_drop"], [1.5]
        cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.STEPS = "WarmupMultiStepLR", (4,)
        cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 2, 1e-3
        cfg.SOLVER.FREEZE = [["backbone", 4]]
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (tiny_digits,)
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 6, 3
        cfg.TEST.EVAL_PERIOD, cfg.OUTPUT_DIR = 0, str(tmp_path / name)
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg

    return make


@pytest.mark.parametrize("case", ["retinanet", "fcos", "faster_rcnn"])
def test_a_resumed_run_is_the_whole_run_bit_for_bit(make_cfg, case):
    """Over the waiting student, the frozen backbone, the step of lambda, and the running mean of objects."""
    whole, _ = whole_and_resumed(partial(make_cfg, case), stop_after=3)
    assert "loss_distill_feature" in whole.storage.histories()


def test_a_steered_weight_is_resumed(make_cfg):
    keys = {"MODEL__DISTILL__BALANCE__TARGET_SHARE": 0.3, "MODEL__DISTILL__BALANCE__ITERATIONS": 5}
    whole_and_resumed(partial(make_cfg, "retinanet", **keys), stop_after=3)


@pytest.mark.parametrize("case", ["retinanet", "faster_rcnn"])
def test_the_students_file_is_the_plain_detectors_key_for_key(make_cfg, case, tmp_path):
    cfg = make_cfg(case, "run")
    run(cfg)
    student = torch.load(tmp_path / "run/student_final.pth", weights_only=True)["model"]
    cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE
    plain = build_model(cfg)
    assert list(student) == list(plain.state_dict())
    plain.load_state_dict(student)


@pytest.mark.parametrize("case", ["retinanet", "faster_rcnn", "deformable"])
def test_bfloat16_trains(make_cfg, case):
    keys = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16", "SOLVER__MAX_ITER": 2}
    if case == "deformable":
        keys["SOLVER__FREEZE"] = []
    for values in losses_by_iteration(run(make_cfg(case, "run", **keys))).values():
        assert all(value == value and abs(value) < 1e4 for value, _ in values)


def test_two_processes_agree_where_one_has_no_objects(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(WORLD))
    assert first["factor"] == second["factor"] == pytest.approx(0.4 / 0.6 * sum(OTHERS) / sum(DISTILLED))
    before = build_spawned().state_dict()
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key
    moved = {key for key, value in first["model"].items() if not torch.equal(value, before[key])}
    assert {"balance.factor", "teacher.points.expand.weight", "teacher.relation.in_proj_weight"} <= moved
