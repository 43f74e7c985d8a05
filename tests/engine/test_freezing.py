"""Parameters that wait: bit for bit as they were until their iteration, then trained."""

from __future__ import annotations

from detr_distill.engine import DistillTrainer
from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.engine.toy import ToyLoader, toy_config


@pytest.fixture(autouse=True)
def toy_loaders(monkeypatch):
    monkeypatch.setattr("detr_distill.engine.trainer.build_train_loader", lambda cfg: ToyLoader())


def weights_after(folder, until: int, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    trainer = DistillTrainer(toy_config(folder, **{"SOLVER.MAX_ITER": 8, **changes}))
    trainer.resume_or_load(resume=False)
    trainer.start_iter, trainer.max_iter = 0, until
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("until", [4, 0.5])
def test_frozen_parameters_move_from_their_iteration_on(tmp_path, optimizer, until):
    changes = {"SOLVER.FREEZE": [["backbone", until]], "SOLVER.OPTIMIZER": optimizer, "SOLVER.WEIGHT_DECAY": 0.1}
    before, waiting, moving = (weights_after(tmp_path / str(n), n, **changes) for n in (1, 4, 5))
    for part in ("weight", "bias"):
        assert torch.equal(before[f"backbone.{part}"], waiting[f"backbone.{part}"]), "weight decay waits as well"
        assert not torch.equal(waiting[f"backbone.{part}"], moving[f"backbone.{part}"])
        assert not torch.equal(before[f"head.{part}"], waiting[f"head.{part}"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["nothing", 3]], "found in no trainable parameter"),
        ([["backbone"]], r"\[regular expression, iteration\]"),
        ([["(", 3]], r"\[regular expression, iteration\]"),
    ],
)
def test_bad_pairs_are_named(tmp_path, pairs, message):
    with pytest.raises(ConfigError, match=f"SOLVER.FREEZE.*{message}"):
        DistillTrainer(toy_config(tmp_path, **{"SOLVER.FREEZE": pairs}))
