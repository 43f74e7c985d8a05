"""Captured steps: what they are given and leave, and what is not captured. On a CPU a graph is the step itself."""

from __future__ import annotations

import contextlib
import logging
import re

from detr_distill.detr.supervision.cost_flags import CostFlags, collect_cost_flags, report
from detr_distill.distill.schedule import Schedule
from detr_distill.engine.capture import WARM_UP, CapturedSteps
from detr_distill.engine.capture_sizes import choose_size, find_obstacle, read_sizes
from detr_distill.errors import ConfigError
from detr_distill.structures.fixed_batch import FixedBatch

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.device_solver import solve_as_on_device
from helpers.engine.toy import toy_config, toy_trainer
from helpers.golden_cases import DIGITS
from helpers.make_golden import build_untrained

SIZES = ((64, 64), (64, 96))
CPU = torch.device("cpu")


class Again:
    """In place of CUDA graphs: what was recorded runs again, on the tensors that it was recorded with."""

    def __init__(self, model):
        self.model, self.recorded = model, 0

    def record(self, run):
        """Leaves the gradients alone, as a capture does."""
        self.recorded += 1
        before = gradients(self.model)
        run()
        for name, value in before.items():
            self.model.get_parameter(name).grad.copy_(value)

        def replay():
            with collect_cost_flags():
                return run()

        return replay

    def beside(self):
        return contextlib.nullcontext()


def make_step(model):
    def step(batch):
        losses = model(batch)
        sum(losses.values()).backward()
        return {name: value.detach() for name, value in losses.items()}

    return step


def captured(model, step=None, sizes=SIZES):
    return CapturedSteps(step or make_step(model), model, sizes, objects=4, device=CPU, recorder=Again(model))


@pytest.fixture
def model(monkeypatch):
    solve_as_on_device(monkeypatch)
    torch.manual_seed(0)
    return build_model(small_cfg(MODEL__DETR__DROPOUT=0.0)).train()


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_every_step_has_the_losses_and_gradients_of_its_batch(model):
    """Of another batch each time, smaller and larger ones in turn, from before the graph to after it."""
    model.size_divisibility = 64  # the ordinary step then pads to the same sizes
    steps = captured(model)
    for seed in range(WARM_UP + 3):
        sizes = ((40, 56), (48, 40)) if seed != 1 else ((64, 96), (40, 40))
        inputs = make_inputs(sizes, counts=(seed % 3, 2), seed=seed)
        model.zero_grad(set_to_none=True)
        expected = make_step(model)(inputs)
        wanted = gradients(model)
        steps.zero_gradients()
        found = steps(inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-7), name
        for name, value in gradients(model).items():
            assert torch.allclose(value, wanted[name], rtol=1e-4, atol=1e-6), name
    assert steps.recorder.recorded == 1


def test_gradients_stay_at_their_place_and_add_up(model):
    steps, inputs = captured(model), make_inputs(((40, 56), (48, 40)))
    for _ in range(WARM_UP + 1):
        steps.zero_gradients()
        steps(inputs)
    places, once = {id(p.grad) for p in model.parameters()}, gradients(model)
    for parameter in model.parameters():
        parameter.grad = None  # as a freeze does
    steps.zero_gradients()
    assert {id(p.grad) for p in model.parameters()} == places
    steps(inputs)
    steps(inputs)
    for name, value in gradients(model).items():
        assert torch.allclose(value, 2 * once[name], rtol=1e-4, atol=1e-6), name


def test_flags_of_costs_are_those_of_each_step():
    values = torch.zeros(1, 2)

    def step(batch):
        report(CostFlags("boxes", values))
        return {"loss": batch.pixels.sum()}

    steps = captured(torch.nn.Linear(1, 1), step)
    with collect_cost_flags() as flags:
        for count in range(WARM_UP + 2):
            values.fill_(count)
            steps(make_inputs(((40, 56),), counts=(1,)))
    assert [int(found.values[0, 0]) for found in flags[WARM_UP:]] == [WARM_UP, WARM_UP + 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: batch[0].update(teacher_image=batch[0]["image"]), "the teacher sees other images"),
        (lambda batch: batch[1].pop("instances"), "no labels"),
        (lambda batch: batch.extend(make_inputs(((40, 40),), counts=(5,))), "SOLVER.CAPTURE_OBJECTS 4"),
    ],
)
def test_what_is_not_captured_runs_as_before_and_says_so_once(change, words, caplog):
    seen = []
    steps = captured(torch.nn.Linear(1, 1), lambda batch: seen.append(batch) or {})
    inputs = make_inputs()
    change(inputs)
    with caplog.at_level(logging.WARNING):
        steps(inputs)
        steps(inputs)
    assert seen == [inputs, inputs] and not isinstance(seen[0], FixedBatch)
    assert (
        len(caplog.records) == 1 and words in caplog.text and "SOLVER.CAPTURE: a step runs as without it" in caplog.text
    )


def test_a_part_that_asks_the_host_is_not_captured(model, caplog):
    """The step that found it out has the losses that it would have had."""

    def step(batch):
        return {"loss": torch.tensor(float(sum(model.read(batch).counts)))}

    from detr_distill.detr.preprocess import read_ground_truth

    model.read = lambda batch: read_ground_truth(batch, "cpu")
    steps = captured(model, step)
    with caplog.at_level(logging.WARNING):
        for _ in range(WARM_UP + 2):
            assert steps(make_inputs())["loss"] == 5
    assert len(caplog.records) == 1 and "counts the objects of each image on the host" in caplog.text


def test_sizes_are_chosen_by_area():
    assert choose_size([(40, 56), (64, 40)], SIZES) == (64, 64)
    assert choose_size([(40, 65)], SIZES) == (64, 96)
    with pytest.raises(
        ConfigError, match=r"SOLVER.CAPTURE_SIZES is \[\[64, 64\], \[64, 96\]\].*is 65 x 64 pixels. Add"
    ):
        choose_size([(65, 40), (10, 64)], SIZES)


def test_sizes_are_read_from_the_configuration():
    cfg = small_cfg(SOLVER__CAPTURE_SIZES=[[64, 96], [64, 64], [64, 96]])
    assert read_sizes(cfg, build_model(cfg)) == SIZES


def test_obstacles_are_known_beforehand():
    model = build_model(small_cfg())
    assert find_obstacle(model, "cuda") == ""
    assert "graphs need CUDA" in find_obstacle(model, "cpu")
    assert "Linear decides on the host" in find_obstacle(torch.nn.Linear(1, 1), "cuda")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d3etr_conditional", "^$"),
        ("retinanet_to_conditional", "TEACHER.NAME FrozenDetector is no DETR"),
        ("lgd_retinanet", "RetinaNet decides on the host"),
    ],
)
def test_what_distils_may_be_captured(name, words):
    _, model = build_untrained(DIGITS / f"{name}.yaml")
    assert re.search(words, find_obstacle(model, "cuda"))
    model.schedule = Schedule(stop_at=3)
    assert re.search(words if words != "^$" else "SCHEDULE changes the step", find_obstacle(model, "cuda"))


def test_a_taught_student_has_the_losses_of_its_batch(monkeypatch):
    solve_as_on_device(monkeypatch)
    cfg, model = build_untrained(DIGITS / "d3etr_conditional.yaml")
    inputs = make_inputs(((64, 96), (96, 64)), num_classes=cfg.MODEL.DETR.NUM_CLASSES)
    steps = captured(model, sizes=((96, 96),))
    torch.manual_seed(0)
    expected = make_step(model)(inputs)
    for _ in range(WARM_UP + 1):
        steps.zero_gradients()
        torch.manual_seed(0)
        found = steps(inputs)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-6), key
    assert steps.recorder.recorded == 1 and not steps.obstacle


def test_a_run_on_a_cpu_goes_on_and_says_so_once(tmp_path, caplog):
    cfg = toy_config(tmp_path, **{"SOLVER.CAPTURE": True, "SOLVER.CAPTURE_SIZES": [[4, 4]]})
    expected, found = toy_trainer(toy_config(tmp_path / "other")), toy_trainer(cfg)
    for trainer in (expected, found):
        trainer.train()
    for mine, its in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert caplog.text.count("SOLVER.CAPTURE: a step runs as without it, since graphs need CUDA") == 1


def test_several_processes_are_not_captured(model, monkeypatch):
    """Their losses exchange what they are divided by, which would end up in the graph."""
    monkeypatch.setattr("detr_distill.engine.capture_sizes.count_processes", lambda: 2)
    assert "several processes" in find_obstacle(model, "cuda")
