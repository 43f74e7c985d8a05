"""One step: accumulation, clipping, precision, what is recorded."""

from detr_distill.detr.supervision.cost_flags import CostFlags, report
from detr_distill.engine.precision import GradientClipper, Precision, clipped_apart
from detr_distill.engine.step import StepTrainer
from detr_distill.errors import ConfigError, NonFiniteError
from detr_distill.randomness import seed_step

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn


class Line(nn.Module):
    """A mean-style loss without randomness; remembers the type that it computed in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, batch):
        output = self.layer(torch.stack(batch))
        self.dtype = output.dtype
        return {"loss": output.square().mean()}


def one_step(batches, **options):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, batches, optimizer, accumulate=len(batches), **options)
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
    return model, {key: value for key, (value, _) in storage.latest().items()}


def samples(count):
    return list(torch.randn(count, 3, generator=torch.Generator().manual_seed(1)))


def test_two_half_batches_equal_the_whole():
    batch = samples(8)
    whole, metrics = one_step([batch])
    halves, half_metrics = one_step([batch[:4], batch[4:]])
    assert not torch.equal(whole.layer.weight, Line().layer.weight)
    torch.testing.assert_close(halves.layer.weight, whole.layer.weight)
    assert half_metrics["total_loss"] == pytest.approx(metrics["total_loss"])
    assert half_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"])


def test_clipping_bounds_the_step_and_records_the_norm_before_it():
    batch = samples(8)
    start = Line()
    _, metrics = one_step([batch])
    clipped, clipped_metrics = one_step([batch], clipper=GradientClipper("full_model", 0.01))
    assert metrics["grad_norm"] > 0.01
    assert clipped_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"])
    step = [after - before for after, before in zip(clipped.parameters(), start.parameters(), strict=True)]
    assert nn.utils.get_total_norm(step).item() == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("clip_type", "bound"), [("norm", torch.linalg.vector_norm), ("value", lambda x: x.abs().max())]
)
def test_each_parameter_is_clipped_for_itself(clip_type, bound):
    layer = nn.Linear(3, 2)
    layer.weight.grad = torch.full((2, 3), 5.0)
    layer.bias.grad = torch.full((2,), 1e-3)
    GradientClipper(clip_type, 0.5)(layer.parameters())
    assert bound(layer.weight.grad).item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(layer.bias.grad, torch.full((2,), 1e-3))


def test_what_distillation_adds_is_clipped_apart():
    model = nn.Module()
    model.student, model.teacher = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    model.teacher.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))
    model.student.weight.grad, model.teacher.weight.grad = torch.full((1, 3), 1.0), torch.full((1, 3), 1000.0)
    norm = GradientClipper("full_model", 2.0)(*clipped_apart(model))
    assert norm.item() == pytest.approx((3 * (1 + 1000**2)) ** 0.5)
    assert torch.equal(model.student.weight.grad, torch.full((1, 3), 1.0)), "its own norm is within the bound"
    assert torch.linalg.vector_norm(model.teacher.weight.grad).item() == pytest.approx(2.0, rel=1e-4)
    assert [len(part) for part in clipped_apart(nn.Linear(2, 2))] == [2]


def test_an_unknown_clip_type_is_named():
    with pytest.raises(ConfigError, match=r"CLIP_TYPE is .fll_model.*full_model, norm, value"):
        GradientClipper("fll_model", 1.0)


def test_bfloat16_runs_on_the_cpu():
    model, metrics = one_step([samples(4)], precision=Precision("cpu", "bfloat16"))
    assert model.dtype == torch.bfloat16 and model.layer.weight.dtype == torch.float32
    assert metrics["total_loss"] > 0


def test_float16_on_the_cpu_says_what_to_do():
    with pytest.raises(ConfigError, match=r"SOLVER.AMP.DTYPE bfloat16"):
        Precision("cpu", "float16")
    with pytest.raises(ConfigError, match="float8"):
        Precision("cpu", "float8")


def test_an_infinite_gradient_of_a_finite_loss_stops_the_step():
    class Root(Line):
        def forward(self, batch):
            return {"loss": (self.layer.weight - self.layer.weight.detach()).abs().sqrt().sum()}

    model = Root()
    before = model.layer.weight.clone()
    trainer = StepTrainer(model, [samples(2)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.iter = 0
    with EventStorage(0), pytest.raises(NonFiniteError, match="grad_norm"):
        trainer.run_step()
    assert torch.equal(model.layer.weight, before)


def test_a_flagged_cost_stops_the_step_and_is_named():
    """Also in the first of two micro-batches, and where every loss is finite."""

    class Flagging(Line):
        def forward(self, batch):
            report(CostFlags("boxes", torch.tensor([[0.0, 0.0], [0.0, float(len(batch) == 3)]])))
            return super().forward(batch)

    model = Flagging()
    before = model.layer.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, [samples(2), samples(2), samples(3), samples(2)], optimizer, accumulate=2)
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
        assert not torch.equal(model.layer.weight, before) and "flagged_costs" not in storage.latest()
        before = model.layer.weight.clone()
        trainer.iter = 1
        with pytest.raises(NonFiniteError, match=r"iteration 1.*'boxes' of decoder layer 1 and image 1 of the batch"):
            trainer.run_step()
    assert torch.equal(model.layer.weight, before)


def test_a_model_in_evaluation_mode_is_refused():
    model = Line()
    trainer = StepTrainer(model, [samples(2)], torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        trainer.run_step()


def test_random_numbers_follow_seed_rank_iteration_and_part():
    def draw(*place):
        seed_step(*place)
        return torch.rand(1).item()

    places = [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(*places[0]) == draw(*places[0])
