"""Which iteration a step is: told in a loop of one's own, asked of detectron2's trainer, and named where it is missing."""

from __future__ import annotations

import copy

import detr_distill
from detr_distill.errors import ConfigError
from detr_distill.iteration import trainer_iteration

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, small_cfg
from helpers.distill.label_teachers import build_distilling

EMA = {
    "MODEL__META_ARCHITECTURE": "DistillDetector",
    "MODEL__DISTILL__TEACHER__NAME": "EmaTeacher",
    "MODEL__DISTILL__MATCHERS": "('FixedMatcher',)",
    "MODEL__DISTILL__EMA_TEACHER__DECAY": 0.5,
    "MODEL__DISTILL__EMA_TEACHER__RAMP_UP": False,
    "MODEL__DETR__DROPOUT": 0.0,
}
DEPENDENT = {
    "STUDENT_FROM": {"SCHEDULE__STUDENT_FROM": 3.0},
    "STOP_AT": {"SCHEDULE__STOP_AT": 3.0},
    "STEPS": {"SCHEDULE__STEPS": [1.0], "SCHEDULE__FACTORS": [2.0]},
    "TARGET_SHARE": {"BALANCE__TARGET_SHARE": 0.3},
    "HEAD_SHARE": {"LABEL_ENCODER__HEAD_SHARE": 0.5},
}
WHO = {
    **dict.fromkeys(("STUDENT_FROM", "STOP_AT", "STEPS"), "MODEL.DISTILL.SCHEDULE"),
    "TARGET_SHARE": "MODEL.DISTILL.BALANCE",
    "HEAD_SHARE": "MODEL.DISTILL.LABEL_ENCODER.HEAD_SHARE",
}
# The remedy, in the words of a call.
REMEDY = r"follows the iterations of a run.*model\(inputs, iteration=n\)"


def train(model, steps: int, *, follow: bool = True, told: bool = True) -> list[dict[str, float]]:
    """A loop of one's own, without an event storage; ``told``: every step's iteration is given."""
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    history = []
    if follow:
        detr_distill.follow_optimizer(model, optimizer, lambda: len(history))
    for iteration in range(steps):
        losses = model(make_inputs(), iteration=iteration) if told else model(make_inputs())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history


def test_what_is_alike_in_every_iteration_needs_none(build_distiller, wide_teacher):
    assert trainer_iteration() is None
    model = build_distiller(wide_teacher)
    history = train(model, 2, told=False)
    assert history[0]["loss_distill_class_fixed"] > 0
    assert history[0] != history[1], "it learns"


@pytest.mark.parametrize("case", ["retinanet", "faster_rcnn"])
def test_a_convolutional_student_trains_without_an_event_storage(case):
    """detectron2's heads want one, for numbers that nobody reads here."""
    model = build_distilling(case)
    history = train(model, 2, told=False)
    assert history[0] != history[1] and "loss_distill_feature" in history[0]
    assert all(value == value for losses in history for value in losses.values())
    assert trainer_iteration() is None, "none is left behind"


@pytest.mark.parametrize("key", DEPENDENT)
def test_what_follows_the_run_names_the_key_and_the_remedy(key):
    model = build_distilling("conditional", **DEPENDENT[key])
    with pytest.raises(ConfigError, match=f"^{WHO[key]} {REMEDY}"):
        model(make_inputs())
    with EventStorage(0):
        assert model(make_inputs())


def test_a_single_image_has_no_turns():
    model = build_distilling("conditional", **DEPENDENT["HEAD_SHARE"])
    assert model(make_inputs()[:1])


def test_an_average_follows_the_run(build_distiller):
    with pytest.raises(ConfigError, match=f"^MODEL.DISTILL.TEACHER.NAME EmaTeacher {REMEDY}"):
        build_distiller(EMA)(make_inputs())


@pytest.mark.parametrize("key", DEPENDENT)
def test_a_given_iteration_is_that_of_the_trainer(key):
    """Step by step, the losses and what is kept of them are those within detectron2's loop."""
    told = build_distilling("conditional", **DEPENDENT[key])
    asked = copy.deepcopy(told)
    for iteration in range(4):
        torch.manual_seed(iteration)
        found = told(make_inputs(), iteration=iteration)
        torch.manual_seed(iteration)
        with EventStorage(iteration):
            expected = asked(make_inputs())
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items()), iteration
    kept = asked.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in told.state_dict().items())


def test_a_given_iteration_comes_before_the_trainers():
    model = build_distilling("conditional", SCHEDULE__STOP_AT=3.0)
    with EventStorage(7):
        assert model(make_inputs(), iteration=2)["loss_distill_feature"] > 0
        assert model(make_inputs())["loss_distill_feature"] == 0


def test_the_factor_of_the_schedule_changes():
    model = build_distilling("conditional", SCHEDULE__STEPS=[2.0], SCHEDULE__FACTORS=[3.0], SCHEDULE__STOP_AT=4.0)
    values = [model(make_inputs(), iteration=iteration)["loss_distill_feature"].item() for iteration in range(5)]
    counted = [value / values[0] for value in values]
    assert counted == pytest.approx([1, 1, 3, 3, 0], rel=1e-2)


def test_the_balance_ends_its_search():
    model = build_distilling("conditional", BALANCE__TARGET_SHARE=0.3, BALANCE__ITERATIONS=2)
    factors = []
    for iteration in range(4):
        model(make_inputs(seed=iteration), iteration=iteration)
        factors.append(model.balance.factor.item())
    assert len(set(factors[:2])) == 2 and factors[1] == factors[2] == factors[3] != 1


def test_images_take_turns():
    model = build_distilling("conditional", LABEL_ENCODER__HEAD_SHARE=0.5)
    turns = []
    model.teacher.register_forward_hook(lambda module, args, known: turns.append(known.second_run.images))
    for iteration in range(3):
        model(make_inputs(), iteration=iteration)
    assert turns == [slice(0, 1), slice(1, 2), slice(0, 1)]


def test_the_average_is_the_one_by_hand(build_distiller):
    """After each step half of the old average and half of the student, of every parameter."""
    model = build_distiller(EMA)
    model.teacher.restart()
    expected = {name: value.clone() for name, value in model.student.named_parameters()}
    start = dict(expected)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=1e-3)
    iterations = iter(range(3))
    detr_distill.follow_optimizer(model, optimizer, lambda: next(iterations))
    for iteration in range(3):
        sum(model(make_inputs(), iteration=iteration).values()).backward()
        optimizer.step()
        expected = {
            name: 0.5 * expected[name] + 0.5 * value.detach() for name, value in model.student.named_parameters()
        }
    averages = dict(model.teacher.average.named_parameters())
    for name, value in averages.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    moved = [name for name, value in averages.items() if not torch.equal(value, start[name])]
    assert moved, "it moves"


def test_an_average_that_is_told_of_no_step_is_refused(build_distiller):
    model = build_distiller(EMA)
    model(make_inputs(), iteration=0)
    model(make_inputs(), iteration=0)  # the next pass of an accumulated step
    with pytest.raises(ConfigError, match=r"EmaTeacher: .*was not told.*after_optimizer_step.*follow_optimizer\(model"):
        model(make_inputs(), iteration=1)


def test_an_average_that_is_told_goes_on(build_distiller):
    """By follow_optimizer() before the loop, or by a call after every step."""
    assert len(train(build_distiller(EMA), 3)) == 3
    with pytest.raises(ConfigError, match="was not told"):
        train(build_distiller(EMA), 2, follow=False)
    model = build_distiller(EMA)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=1e-3)
    for iteration in range(2):
        sum(model(make_inputs(), iteration=iteration).values()).backward()
        optimizer.step()
        model.teacher.after_optimizer_step(optimizer, iteration)


def test_detections_need_no_iteration():
    """Nor does a plain detector's training."""
    model = build_distilling("conditional", SCHEDULE__STOP_AT=3.0).eval()
    assert len(model(make_inputs(labels=False))) == 2
    assert build_model(small_cfg()).train()(make_inputs())
