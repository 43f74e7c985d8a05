"""The moving average of the weights, evaluated and shipped in the trained detector's place."""

from __future__ import annotations

from detr_distill.checkpoint import SafeCheckpointer
from detr_distill.checkpoint.export import AVERAGED
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.checkpoint.strict import load_strict
from detr_distill.commands.export_student import main as export
from detr_distill.errors import CheckpointError

import pytest
import torch
from helpers.engine.toy import ToyDetector, toy_config, toy_trainer

EMA = {"SOLVER.EMA.ENABLED": True, "SOLVER.EMA.DECAY": 0.9, "SOLVER.EMA.RAMP_UP": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = toy_trainer(toy_config(tmp_path_factory.mktemp("average"), **EMA))
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    steps = []
    trainer.optimizer.register_step_post_hook(
        lambda *_: steps.append({name: value.clone() for name, value in trainer.model.named_parameters()})
    )
    trainer.train()
    return trainer, start, steps


def test_the_average_is_that_of_the_steps(finished):
    trainer, start, steps = finished
    for name, value in trainer.detector.named_parameters():
        expected = start[name]
        for step in steps:
            expected = 0.9 * expected + 0.1 * step[name]
        assert torch.allclose(value, expected, atol=1e-6) and not torch.equal(value, steps[-1][name])
    assert torch.equal(trainer.detector.norm.running_mean, trainer.model.norm.running_mean)


def test_training_itself_does_not_feel_it(finished, tmp_path):
    plain = toy_trainer(toy_config(tmp_path))
    plain.train()
    assert plain.recorded == finished[0].recorded


def test_a_resumed_run_goes_on_with_it(finished, tmp_path):
    cut = toy_trainer(toy_config(tmp_path, **EMA))
    cut.max_iter = 6
    cut.train()
    resumed = toy_trainer(toy_config(tmp_path, **EMA), resume=True)
    assert resumed.start_iter == 6
    resumed.train()
    for name, value in finished[0].detector.state_dict().items():
        assert torch.equal(resumed.detector.state_dict()[name], value), name


def test_what_detects_is_the_average(finished, tmp_path):
    """Evaluated, as a teacher, exported, and as the student's own file."""
    trainer = finished[0]
    folder = trainer.cfg.OUTPUT_DIR
    final = f"{folder}/model_final.pth"
    expected = trainer.detector.state_dict()
    evaluated, teacher = ToyDetector(), ToyDetector()
    SafeCheckpointer(evaluated).load_complete(final)
    load_strict(teacher, final)
    export(["--weights", final, "--output", str(tmp_path / "student.pth")])
    found = [
        evaluated.state_dict(),
        teacher.state_dict(),
        read_checkpoint(tmp_path / "student.pth")["model"],
        read_checkpoint(f"{folder}/student_final.pth")["model"],
    ]
    assert not torch.equal(read_checkpoint(final)["model"]["head.weight"], expected["head.weight"])
    for weights in found:
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_run_without_average_is_not_gone_on_with(tmp_path):
    cut = toy_trainer(toy_config(tmp_path))
    cut.max_iter = 6
    cut.train()
    with pytest.raises(CheckpointError, match=f"no {AVERAGED} state"):
        toy_trainer(toy_config(tmp_path, **EMA), resume=True)
