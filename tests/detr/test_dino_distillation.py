"""DINO and DN-Deformable DETR as teacher and as student."""

from __future__ import annotations

import pytest
import torch
from builders import randomise, small_cfg
from detectron2.modeling import build_model
from detr.denoising_detectors import DINO, DN_DEFORMABLE
from steps import ReadCounter
from torch import Tensor

LOSSES = ["PredictionLoss", "AttentionLoss", "SampledAttentionLoss"]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ({**DINO, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_QUERIES": 9}, DINO),
        (DINO, DN_DEFORMABLE),
        (DN_DEFORMABLE, DINO),
    ],
    ids=["dino-dino", "dino-dn", "dn-dino"],
)
def test_distillation_step_with_denoising(tmp_path, inputs, teacher, student, monkeypatch):
    """Both matchers; one read of the device, a gradient for every parameter; the teacher denoises nothing."""
    cfg = small_cfg(**teacher)
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": randomise(build_model(cfg), 1).state_dict()}, tmp_path / "teacher.pth")
    keys = {
        "MODEL__META_ARCHITECTURE": "DistillDetector",
        "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(tmp_path / "teacher.yaml"),
        "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "teacher.pth"),
        "MODEL__DISTILL__LOSSES": LOSSES,
        "MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0,
    }
    model = build_model(small_cfg(**keys, **student)).train()
    randomise(model.student, 2)
    (maker,) = model.teacher.detector.training_groups.values()
    maker.register_forward_pre_hook(lambda *_: pytest.fail("the teacher made denoising queries"))
    copies, original = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with ReadCounter() as counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert counter.reads == [] and copies == [1]
    for name in ("adaptive", "fixed"):
        assert {f"loss_distill_{term}_{name}" for term in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert {"loss_class_denoising", "loss_class_fixed"} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
