"""A frozen teacher whose weights are kept in half the width computes what autocast would make of whole ones."""

from __future__ import annotations

from detr_distill.distill.students.base import StudentStep

import pytest
import torch
from helpers.builders import make_inputs
from torch import nn

PRECISION = "MODEL__DISTILL__TEACHER__PRECISION"
LOSSES = ["PredictionLoss", "QueryRelationLoss", "TargetAwareLoss"]


def knowledge_of(model, amp):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        return model.teacher(StudentStep(make_inputs()), frozenset())


def test_half_weights_are_those_that_autocast_makes(build_distiller, wide_teacher):
    expected = knowledge_of(build_distiller(wide_teacher), amp=True)
    half = build_distiller(wide_teacher, **{PRECISION: "bfloat16"})
    linears = [module for module in half.teacher.detector.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert linears and {linear.weight.dtype for linear in linears} == {torch.bfloat16}
    assert half.teacher.detector.decoder.norm.weight.dtype == torch.float32, "autocast keeps norms whole"
    for amp in (True, False):
        found = knowledge_of(half, amp)
        for name in ("logits", "boxes", "hidden"):
            pair = getattr(found.output, name).float(), getattr(expected.output, name).float()
            assert torch.allclose(*pair, atol=0.02), name
        group = found.queries
        assert torch.equal(found.decode(group).logits, found.output.logits), "whoever asks it to decode"


def test_whole_weights_stay_whole_in_a_mixed_step(build_distiller, wide_teacher):
    whole = build_distiller(wide_teacher, **{PRECISION: "float32"})
    expected = knowledge_of(build_distiller(wide_teacher), amp=False)
    assert torch.equal(knowledge_of(whole, amp=True).output.logits, expected.output.logits)


def test_a_step_learns_from_such_a_teacher(build_distiller, wide_teacher):
    keys = {"MODEL__DISTILL__LOSSES": LOSSES, "MODEL__DISTILL__TARGET_AWARE_LOSS__PROJECTION": "teacher"}
    found = []
    for precision in ("bfloat16", "step"):
        model = build_distiller(wide_teacher, **{PRECISION: precision}, **keys)
        torch.manual_seed(0)  # dropout
        found.append(model(make_inputs()))
    losses, expected = found
    assert losses.keys() == expected.keys() and all(value.isfinite() for value in losses.values())
    name = "loss_distill_target_aware"
    assert losses[name].item() == pytest.approx(expected[name].item(), rel=0.05)


def test_the_detector_itself_computes_in_it(build_distiller, wide_teacher):
    detector = build_distiller(wide_teacher, **{PRECISION: "bfloat16"}).teacher.detector
    with torch.no_grad():
        assert len(detector(make_inputs(labels=False))) == 2
