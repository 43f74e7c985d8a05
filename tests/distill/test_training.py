"""A distilling run through the trainer: exact resume, AMP, accumulation, and a student that stands alone."""

from __future__ import annotations

import json

from detr_distill.checkpoint import load_strict
from detr_distill.data import class_names
from detr_distill.engine.trainer import DistillTrainer

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.distill.running import run, whole_and_resumed


@pytest.fixture
def make_cfg(tmp_path, save_teacher, tiny_digits):
    def make(name, **keys):
        teacher = save_teacher(MODEL__DETR__NUM_CLASSES=10, MODEL__DETR__HIDDEN_DIM=24)
        settings = {
            "DATASETS__TRAIN": (tiny_digits,),
            "DATASETS__TEST": (tiny_digits,),
            "MODEL__DETR__NUM_CLASSES": 10,
            "MODEL__DISTILL__TEACHER__CLASS_NAMES": class_names(tiny_digits),
            "MODEL__DETR__DROPOUT": 0.1,
            "SOLVER__IMS_PER_BATCH": 2,
            "SOLVER__MAX_ITER": 6,
            "SOLVER__CHECKPOINT_PERIOD": 3,
            "TEST__EVAL_PERIOD": 0,
            "OUTPUT_DIR": str(tmp_path / name),
        }
        return small_cfg(**{**teacher, **settings, **keys})

    return make


def test_distilling_run_resumes_bit_for_bit(make_cfg):
    """Both matchers, dropout, the learned projection of the teacher's queries and AdamW's state included."""
    whole_and_resumed(make_cfg, stop_after=3)


def test_student_file_evaluates_alike_in_the_plain_detector(make_cfg, tmp_path):
    cfg = make_cfg("run")
    trainer = run(cfg)
    written = json.loads((tmp_path / "run/results.json").read_text())["datasets"]["tiny_digits"]["bbox"]
    plain_cfg = cfg.clone()
    plain_cfg.MODEL.META_ARCHITECTURE = "DetrDetector"
    plain = build_model(plain_cfg).eval()
    load_strict(plain, str(tmp_path / "run/student_final.pth"))
    alone = DistillTrainer.test(plain_cfg, plain)["bbox"]
    for key in ("AP", "AP50", "AP75"):
        assert alone[key] == pytest.approx(written[key], nan_ok=True)
    assert all(torch.equal(v, trainer.model.state_dict()["student." + k]) for k, v in plain.state_dict().items())


def test_mixed_precision_keeps_losses_in_float32(make_cfg):
    half = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16", "MODEL__DETR__DROPOUT": 0.0}
    trainer = run(make_cfg("amp", SOLVER__MAX_ITER=2, **half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = next(iter(trainer.build_train_loader(trainer.cfg)))
        losses = trainer.model.train()(batch)
    assert all(value.dtype == torch.float32 for value in losses.values())
    full = trainer.model(batch)
    for name, value in losses.items():
        assert value.item() == pytest.approx(full[name].item(), rel=0.2, abs=0.1), name


def test_accumulation_runs_the_distilling_step(make_cfg):
    trainer = run(make_cfg("accumulate", SOLVER__ACCUMULATE=2, SOLVER__MAX_ITER=2))
    assert all(p.isfinite().all() for p in trainer.model.parameters())
