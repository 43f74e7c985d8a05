"""The search for lambda: it finds a known answer, every trial starts alike, and the tool prints a key."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.engine.calibration import KEY, calibrate, measure_share
from detr_distill.engine.randomness import seed_step
from detr_distill.engine.trainer import DistillTrainer
from detr_distill.errors import ConfigError

import pytest
import torch
import yaml
from detectron2.utils.events import get_event_storage
from helpers.builders import ROOT

CONFIG = str(ROOT / "configs/digits/sssd_retinanet.yaml")


@pytest.fixture
def small(tiny_digits):
    """Overrides that make a trial short."""
    words = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "MODEL.FPN.OUT_CHANNELS", "16", "OUTPUT_DIR", "unused"]
    return [*words, "DATASETS.TRAIN", f"('{tiny_digits}',)", "DATASETS.TEST", "()"]


def test_bisection_finds_a_known_weight():
    def share(weight: float) -> float:
        return weight / (weight + 60)

    weight, probes = calibrate(share, target=0.45, low=1, high=100, tolerance=0.002, most_probes=12)
    assert weight == pytest.approx(60 * 0.45 / 0.55, rel=0.02)
    assert abs(probes[-1].share - 0.45) <= 0.002 and len(probes) <= 12
    weight, probes = calibrate(share, target=0.9, low=1, high=100, tolerance=0.001, most_probes=5)
    assert weight == max(probe.weight for probe in probes), "out of reach: the nearest trial"
    for options in ({"target": 1.2}, {"low": 5, "high": 2}, {"low": 0}):
        with pytest.raises(ConfigError, match="--"):
            calibrate(share, **{"target": 0.5, "low": 1, "high": 9, "tolerance": 0.1, "most_probes": 3, **options})


def test_trials_start_alike_and_leave_nothing(small):
    cfg = build_config(CONFIG, small)
    cfg.MODEL.DISTILL.FEATURE_LOSS.WEIGHT = 10.0
    first, again = measure_share(cfg, 2), measure_share(cfg, 2)
    assert first == again and 0 < first < 1
    cfg.merge_from_list([KEY, 40.0])
    assert measure_share(cfg, 2) > first
    assert not Path("unused").exists()


def test_a_trial_is_the_start_of_the_run(monkeypatch, small):
    """The mean share of the losses that its steps had, at the rates of the run's own warm-up."""
    cfg = build_config(CONFIG, small)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 3, 0.1
    steps = []

    class WatchedTrainer(DistillTrainer):
        def run_step(self):
            rate = self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["initial_lr"]
            super().run_step()
            storage = get_event_storage()
            losses = {name: value for name, (value, _) in storage.latest().items() if name.startswith("loss_")}
            drawn_from, seed = torch.initial_seed(), self.state_dict()["seed"]
            seed_step(seed, 0, len(steps), part=1)
            assert drawn_from == torch.initial_seed(), "the random numbers are those of the run's step"
            steps.append({"iterations": {self.iter, storage.iter}, "rate": rate, "losses": losses})

    monkeypatch.setattr("detr_distill.engine.calibration.DistillTrainer", WatchedTrainer)
    told = []
    share = measure_share(cfg, 3, told.append)
    assert told == [0, 1, 2] and [step["iterations"] for step in steps] == [{0}, {1}, {2}]
    assert [step["rate"] for step in steps] == pytest.approx([0.1, 0.4, 0.7], rel=1e-3)
    shares = [step["losses"]["loss_distill_feature"] / sum(step["losses"].values()) for step in steps]
    assert len(set(shares)) == 3 and share == pytest.approx(sum(shares) / 3, rel=1e-6)


def test_the_tool_prints_the_key(capsys, tmp_path, small):
    spec = importlib.util.spec_from_file_location("calibrate_lambda", ROOT / "tools/calibrate_lambda.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = ["--config-file", CONFIG, "--num-gpus", "0"]
    tool.main([*config, "--iterations", "2", "--probes", "2", "--target-share", "0.3", *small])
    found = yaml.safe_load(capsys.readouterr().out.strip().splitlines()[-1])
    assert 1 <= found["MODEL"]["DISTILL"]["FEATURE_LOSS"]["WEIGHT"] <= 100
    # A whole number, at the middle of the range, and after the overrides: the line is a file's content as it is.
    tool.main([*config, *small, "--iterations", "1", "--probes", "1", "--low", "1", "--high", "99"])
    output = capsys.readouterr()
    file = tmp_path / "found.yaml"
    file.write_text(f"_BASE_: {CONFIG}\n{output.out.strip().splitlines()[-1]}\n")
    assert build_config(str(file), small).MODEL.DISTILL.FEATURE_LOSS.WEIGHT == 50
    assert "more than --tolerance 0.005" in output.err
    for refused, message in (
        (["--config-file", str(ROOT / "configs/digits/retinanet_student.yaml")], "does not distil with FeatureLoss"),
        (["--probes", "0"], "--probes is 0. Give 1 or more"),
        (["--iterations", "0"], "is 0. Give a number from 1 to 800"),
        (["--iterations", "801"], "is 801. Give a number from 1 to 800"),
        (["MODEL.DISTILL.BALANCE.TARGET_SHARE", "0.3"], "TARGET_SHARE is 0.3: the run steers"),
    ):
        with pytest.raises(SystemExit):
            tool.main([*config, *refused])
        assert message in " ".join(capsys.readouterr().err.split())
