"""DINO and DN-Deformable DETR as teacher and as student."""

from __future__ import annotations

import pytest
from helpers.detr.denoising_detectors import DINO, DN_DEFORMABLE
from helpers.host_reads import host_reads

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
def test_distillation_step_with_denoising(distiller, inputs, teacher, student):
    """Both matchers; one read of the device, a gradient for every parameter; the teacher denoises nothing."""
    keys = {"MODEL__DISTILL__LOSSES": LOSSES, "MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0}
    model = distiller(teacher, {**student, **keys})
    (maker,) = model.teacher.detector.training_groups.values()
    maker.register_forward_pre_hook(lambda *_: pytest.fail("the teacher made denoising queries"))
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    for name in ("adaptive", "fixed"):
        assert {f"loss_distill_{term}_{name}" for term in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert {"loss_class_denoising", "loss_class_fixed"} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
