"""Deformable DETR as teacher and as student."""

from __future__ import annotations

from detr_distill.distill.students.base import StudentStep
from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.detr.deformable_detectors import PLAIN, REFINE, SINGLE, TWO_STAGE
from helpers.host_reads import host_reads

CONDITIONAL = {"MODEL__DETR__HIDDEN_DIM": 16}
SELF_ONLY = {"MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (PLAIN, PLAIN),
        (TWO_STAGE, TWO_STAGE),
        ({**TWO_STAGE, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_QUERIES": 9}, {**PLAIN}),
        ({**REFINE, "MODEL__DETR__DECODER__NUM_LAYERS": 3}, TWO_STAGE),
        (PLAIN, CONDITIONAL),
        (TWO_STAGE, CONDITIONAL),
        (CONDITIONAL, SINGLE),
        (CONDITIONAL, TWO_STAGE),
    ],
    ids=["plain", "two_stage", "two_stage-plain", "refine-two_stage", "plain-conditional", "two_stage-conditional",
         "conditional-single", "conditional-two_stage"],
)  # fmt: skip
def test_distillation_step(distiller, inputs, teacher, student):
    """Both matchers, predictions and self-attention; one read of the device, a gradient for every parameter."""
    model = distiller(teacher, {**student, **SELF_ONLY})
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    for name in ("adaptive", "fixed"):
        assert {f"loss_distill_{t}_{name}" for t in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert "loss_class_fixed" in losses and ("loss_class_encoder" in losses) == (student is TWO_STAGE)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_boxes_of_a_two_stage_teacher_enter_the_student_unchanged(distiller, inputs):
    wide = {**TWO_STAGE, "MODEL__DETR__HIDDEN_DIM": 64}
    model = distiller(wide, {**TWO_STAGE, **SELF_ONLY})
    knowledge = model.teacher(StudentStep(inputs), frozenset())
    (group,) = model.matchers["FixedMatcher"].extra_groups(knowledge, 2)
    assert group.content.shape == (2, 7, 32) and torch.equal(group.position, knowledge.queries.position)


@pytest.mark.parametrize(("teacher", "student"), [(PLAIN, PLAIN), (PLAIN, CONDITIONAL), (CONDITIONAL, PLAIN)])
def test_cross_attention_is_refused_at_build(distiller, teacher, student):
    with pytest.raises(
        ConfigError, match=r"AttentionLoss asks for cross_attention, which the \w+'s Deformable.*CROSS_WEIGHT 0.0"
    ):
        distiller(teacher, student)
