"""The course of distillation over a run: who feels the loss, and how much it counts."""

from __future__ import annotations

from detr_distill.config.keys import check_keys
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.feature import FeatureLoss
from detr_distill.distill.losses.map_pairs import MapPair
from detr_distill.distill.schedule import Schedule, scale_gradient, scale_student
from detr_distill.distill.students.base import StudentOutput
from detr_distill.errors import ConfigError
from detr_distill.iteration import resolve_iteration, trainer_iteration
from detr_distill.structures import DecoderOutput, Memory

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, small_cfg
from helpers.distill.label_teachers import build_distilling


def schedule(**keys) -> Schedule:
    cfg = small_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1800, (1200, 1600)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    for key, value in keys.items():
        cfg.MODEL.DISTILL.SCHEDULE[key] = value
    check_keys(cfg, "MODEL.DISTILL")
    return Schedule.from_config(cfg)


def test_schedule_of_lgd_and_sssd():
    course = schedule(STUDENT_FROM=1 / 6, STOP_AT=1700.0, STEPS=["lr_drop"], FACTORS=[4 / 3])
    assert [course.student_share(i) for i in (0, 299, 300, 1799)] == [0, 0, 1, 1]
    assert [course.factor(i) for i in (0, 1199, 1200, 1699, 1700)] == [1, 1, 4 / 3, 4 / 3, 0]
    assert schedule() == Schedule(), "by default nothing changes over the run"
    assert schedule(STEPS=[0.25, 900.0], FACTORS=[2.0, 3.0]).steps == (450, 900)
    assert schedule(STOP_AT=1e-4).factor(0) == 0, "rounded to no iteration at all, it has stopped from the start"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"STEPS": [5], "FACTORS": []}, "one factor"),
        ({"STEPS": [0.9, 5], "FACTORS": [1.0, 2.0]}, "in order"),
        ({"STEPS": ["never"], "FACTORS": [1.0]}, "'never'"),
        ({"STEPS": [-5.0], "FACTORS": [1.0]}, "STEPS is -5.0"),
        ({"STEPS": [5], "FACTORS": [-1.0]}, "FACTORS is -1.0"),
    ],
)
def test_bad_schedules_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        schedule(**keys)


def test_an_iteration_is_a_number_or_a_fraction_below_one():
    assert [resolve_iteration(value, 1800) for value in (0, 0.5, 0.999, 1, 1.0, 7.0)] == [0, 900, 1798, 1, 1, 7]
    course = schedule(STUDENT_FROM=1.0, STEPS=[1.0], FACTORS=[2.0], STOP_AT=1800.0)
    assert course == Schedule(student_from=1, stop_at=1800, steps=(1,), factors=(2.0,)), "1 is not the whole run"


def test_iterations_come_from_the_training_under_way():
    assert trainer_iteration() is None
    with EventStorage(17):
        assert trainer_iteration() == 17


def test_scaled_gradient_is_the_value_forward():
    values = torch.randn(3, requires_grad=True)
    scaled = scale_gradient(values, 0.25)
    assert torch.equal(scaled, values)
    scaled.sum().backward()
    assert torch.equal(values.grad, torch.full((3,), 0.25))
    output = DecoderOutput(values, values, values, "sigmoid", self_attention=(values,))
    memory = Memory(values, values, None, [(1, 3)])
    student = scale_student(StudentOutput({"a": values}, {"own": output}, memory), 0.0)
    for part in (
        student.features["a"],
        student.outputs["own"].logits,
        student.outputs["own"].self_attention[0],
        student.memory.tokens,
    ):
        assert torch.equal(part, values)
        assert not torch.autograd.grad(part.sum(), values)[0].any()


def test_adapters_train_while_the_student_waits():
    generator = torch.Generator().manual_seed(0)
    own, target = torch.randn(2, 2, 3, 2, 2, generator=generator)
    own.requires_grad_()
    loss = FeatureLoss(weight=1.0, pairs=(MapPair("a", "a", 3, 3),), adapter_layers=1)
    student = scale_student(StudentOutput({"a": own}), 0.0)
    loss(student, Knowledge(features={"a": target}), [])["loss_distill_feature"].backward()
    assert not own.grad.any() and all(p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize("target_share", [0.0, 0.3])
def test_a_step_of_training_follows_the_schedule(target_share):
    """Before and at each boundary, in the model itself; the factors multiply what is balanced and are not undone."""
    keys = {"STUDENT_FROM": 5.0, "STEPS": [7.0, 8.0], "FACTORS": [3.0, 0.5], "STOP_AT": 10.0}
    model = build_distilling(
        "retinanet",
        **{f"SCHEDULE__{key}": value for key, value in keys.items()},
        BALANCE__TARGET_SHARE=target_share,
        BALANCE__ITERATIONS=100,
    )
    inputs = make_inputs(sizes=((64, 96), (96, 64)))

    def feels(part) -> bool:
        return any(value.grad is not None and bool(value.grad.any()) for value in part.parameters())

    values = {}
    for iteration, student_learns, adapter_learns in (
        (4, False, True),
        (5, True, True),
        (6, True, True),
        (7, True, True),
        (8, True, True),
        (9, True, True),
        (10, False, False),
    ):
        model.zero_grad(set_to_none=True)
        # RetinaNet's running mean of objects would change the losses that the balance reads.
        model.student.loss_normalizer = 100
        with EventStorage(iteration):
            loss = model(inputs)["loss_distill_feature"]
        loss.backward()
        values[iteration] = loss.item()
        assert (feels(model.student), feels(model.losses)) == (student_learns, adapter_learns), iteration
        assert not feels(model.teacher), "the encoder learns from its detection loss alone"
        # All processes exchange the same gradients in every step.
        assert all(value.grad is not None for value in model.losses.parameters()), iteration
    counted = {iteration: value / values[4] for iteration, value in values.items()}
    assert counted == pytest.approx({4: 1, 5: 1, 6: 1, 7: 3, 8: 0.5, 9: 0.5, 10: 0}, rel=1e-4)
