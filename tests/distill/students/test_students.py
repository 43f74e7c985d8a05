"""Any detector in two halves gives the losses of its own forward, and its head reads the maps that it is given."""

from __future__ import annotations

from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.distill.students.second_run import fewer_regions

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise
from helpers.convolutional import CASES, make_masked_inputs
from helpers.distill.student_steps import start_step, whole_step


@pytest.mark.parametrize("case", CASES)
def test_the_halves_give_the_losses_of_the_whole(case):
    detector = randomise(build_model(CASES[case]())).train()
    inputs = make_masked_inputs(sizes=((64, 96), (96, 64)))
    with EventStorage():
        torch.manual_seed(0)
        expected = detector(inputs)
        vars(detector).pop("loss_normalizer", None)  # RetinaNet's running mean of objects
        torch.manual_seed(0)
        step, output = whole_step(detector, inputs)
        assert step.image_size == (96, 96)
        assert all(values.shape[0] == 2 and values.dim() == 4 for values in step.features.values())
        losses = output.losses()
    assert losses.keys() == expected.keys()
    assert all(torch.allclose(losses[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)


@pytest.mark.parametrize("case", CASES)
def test_the_head_reads_the_maps_that_it_is_given(case):
    detector = randomise(build_model(CASES[case]())).train()
    if hasattr(detector, "proposal_generator"):
        detector.proposal_generator.batch_size_per_image = 10_000  # a draw of fewer anchors may leave a level out
    inputs = make_masked_inputs(sizes=((64, 96), (96, 64)))
    student, step = start_step(detector, inputs)
    maps = {name: torch.rand_like(values).requires_grad_() for name, values in step.features.items()}
    matchings = Matchings()
    with EventStorage():
        output = student.finish(step, [], frozenset(), matchings, maps)
    matchings.solve()
    sum(output.losses().values()).backward()
    assert all(values.grad.abs().sum() > 0 for values in maps.values())
    assert not [name for name, p in detector.backbone.named_parameters() if p.grad is not None]


@pytest.mark.parametrize("case", ["faster_rcnn", "cascade_rcnn"])
def test_fewer_regions_within_and_all_behind(case):
    detector = build_model(CASES[case]()).train()
    inputs = make_inputs(sizes=((64, 96), (96, 64)))

    def regions() -> float:
        with EventStorage() as storage:
            detector(inputs)
            found = storage.latest()
        return sum(found[name][0] for name in found if name.startswith("roi_head") and "samples" in name)

    everything = regions()
    with fewer_regions(detector, 0.25):
        assert regions() == pytest.approx(everything / 4)
    assert regions() == everything
