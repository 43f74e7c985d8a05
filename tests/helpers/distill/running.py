"""Whole runs of the trainer on a few images."""

from __future__ import annotations

from detr_distill.engine.trainer import DistillTrainer

import torch


def run(cfg, resume=False, stop_after=None):
    torch.manual_seed(0)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_after is not None:
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


def whole_and_resumed(make, stop_after):
    """A whole run, and one of the same settings that was stopped and resumed: equal in weights and losses, bit for bit.

    ``make`` gives the configuration of a run in a folder of its name. Returns both trainers.
    """
    whole = run(make("whole"))
    run(make("half"), stop_after=stop_after)
    resumed = run(make("half"), resume=True)
    assert resumed.start_iter == stop_after
    state, found_state = whole.model.state_dict(), resumed.model.state_dict()
    assert state.keys() == found_state.keys()
    for name, value in state.items():
        assert torch.equal(value, found_state[name]), name
    expected, found = losses_by_iteration(whole), losses_by_iteration(resumed)
    assert expected.keys() == found.keys() and "total_loss" in expected
    for name, values in expected.items():
        assert {i: v for v, i in values if i >= stop_after} == {i: v for v, i in found[name]}, name
    return whole, resumed


def losses_by_iteration(trainer):
    return {k: trainer.storage.history(k).values() for k in trainer.storage.histories() if "loss" in k}
