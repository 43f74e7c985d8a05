"""AdaMixer's training step, alone and in distillation."""

from __future__ import annotations

from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.builders import make_inputs
from helpers.detr.adamixer_detectors import ADAMIXER, build
from helpers.host_reads import host_reads
from helpers.steps import encode

CONDITIONAL = {"MODEL__DETR__HIDDEN_DIM": 16}
DAB = {"MODEL__DETR__DECODER__NAME": "DabDecoder", "MODEL__DETR__QUERIES__NAME": "AnchorBoxQueries"}
SELF_ONLY = {"MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0}
BOTH, ADAPTIVE = ["AdaptiveMatcher", "FixedMatcher"], ["AdaptiveMatcher"]


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_losses_have_every_layer_and_reach_every_parameter(counts, classification):
    model = build(MODEL__DETR__LOSS__CLASSIFICATION=classification).train()
    losses = model(make_inputs(counts=counts))
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in ("", "_0")}
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_step_reads_the_device_once(inputs):
    model = build().train()
    with host_reads() as reads:
        sum(model(inputs).values()).backward()
    assert reads == ["cpu"]


def test_boxes_stay_in_float32_under_autocast(inputs):
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        memory = encode(model, inputs)
        output = model.decode(memory, [model.queries(memory)])["own"]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "matchers"),
    [
        (ADAMIXER, ADAMIXER, BOTH),
        ({**ADAMIXER, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__DECODER__NUM_LAYERS": 3}, ADAMIXER, BOTH),
        (ADAMIXER, CONDITIONAL, ADAPTIVE),
        (ADAMIXER, CONDITIONAL, BOTH),
        (CONDITIONAL, ADAMIXER, BOTH),
        (DAB, ADAMIXER, BOTH),
    ],
    ids=["same", "wide", "conditional_adaptive", "conditional", "from_conditional", "from_dab"],
)
def test_distillation_step(distiller, inputs, teacher, student, matchers):
    """Predictions and self-attention; one read of the device, a gradient for every parameter."""
    model = distiller(teacher, {**student, **SELF_ONLY, "MODEL__DISTILL__MATCHERS": matchers})
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    for name in ("adaptive", "fixed")[: len(matchers)]:
        assert {f"loss_distill_{t}_{name}" for t in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert ("loss_class_fixed" in losses) == (matchers is BOTH)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize(
    ("teacher", "student"), [(ADAMIXER, ADAMIXER), (ADAMIXER, CONDITIONAL), (CONDITIONAL, ADAMIXER)]
)
def test_cross_attention_is_refused_at_build(distiller, teacher, student):
    with pytest.raises(
        ConfigError, match=r"AttentionLoss asks for cross_attention, which the \w+'s AdaMixer.*CROSS_WEIGHT"
    ):
        distiller(teacher, student)
