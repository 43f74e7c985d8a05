"""Training steps with the sampled-attention loss, and the decoders that it refuses."""

from __future__ import annotations

from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.builders import make_inputs
from helpers.detr.deformable_detectors import PLAIN as LEARNED
from helpers.detr.deformable_detectors import TWO_STAGE
from helpers.host_reads import host_reads

OTHER_SAMPLING = {
    **LEARNED,
    "MODEL__DETR__HIDDEN_DIM": 64,
    "MODEL__DETR__NUM_HEADS": 4,
    "MODEL__DETR__NUM_LEVELS": 2,
    "MODEL__DETR__DECODER__NUM_POINTS": 3,
    "MODEL__DETR__DECODER__NUM_LAYERS": 3,
    "MODEL__DETR__NUM_QUERIES": 9,
}
LOSSES = {"MODEL__DISTILL__LOSSES": ["PredictionLoss", "SampledAttentionLoss"]}


@pytest.mark.parametrize("distance", ["energy", "js"])
@pytest.mark.parametrize(
    ("teacher", "student"), [(OTHER_SAMPLING, LEARNED), (TWO_STAGE, LEARNED), (OTHER_SAMPLING, TWO_STAGE)],
    ids=["other_sampling", "two_stage-learned", "learned-two_stage"],
)  # fmt: skip
def test_step_teaches_where_to_look(build_distiller, save_teacher, inputs, teacher, student, distance):
    """Both matchers; one read of the device; by this loss alone the offsets and weights of every layer move."""
    model = build_distiller(
        student, save_teacher(**teacher), LOSSES, MODEL__DISTILL__SAMPLED_ATTENTION_LOSS__DISTANCE=distance
    )
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    own = {n: v for n, v in losses.items() if "sampled_attention" in n}
    assert own.keys() == {f"loss_distill_sampled_attention_{g}{s}" for g in ("adaptive", "fixed") for s in ("_0", "")}
    assert all(0 < value < 1 for value in own.values())
    model.zero_grad()
    sum(value for name, value in model(inputs).items() if name in own).backward()
    for layer in model.student.decoder.layers:
        for part in (layer.cross_attention.sampling_offsets, layer.cross_attention.attention_weights):
            assert part.weight.grad.abs().sum() > 0 and part.weight.grad.isfinite().all()


def test_a_student_like_its_teacher_costs_nothing(build_distiller, save_teacher, inputs):
    model = build_distiller(LEARNED, save_teacher(**LEARNED), LOSSES)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    model.student.eval()  # so that normalisation is the teacher's too
    losses = model(inputs)
    assert all(value.abs() < 1e-4 for name, value in losses.items() if "sampled_attention" in name)


def test_mixed_precision_keeps_the_loss_in_float32(build_distiller, save_teacher):
    model = build_distiller(LEARNED, save_teacher(**OTHER_SAMPLING), LOSSES)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_inputs())
    found = {name: value for name, value in losses.items() if "sampled_attention" in name}
    assert found and all(value.dtype == torch.float32 and value.isfinite() for value in found.values())


@pytest.mark.parametrize(("teacher", "student", "who"), [({}, LEARNED, "teacher"), (LEARNED, {}, "student")])
def test_dense_decoders_are_refused_at_build(build_distiller, save_teacher, teacher, student, who):
    expected = rf"SampledAttentionLoss asks for sampled_attention, which the {who}'s ConditionalDecoder.*AttentionLoss"
    with pytest.raises(ConfigError, match=expected):
        build_distiller(student, save_teacher(**teacher), LOSSES)
