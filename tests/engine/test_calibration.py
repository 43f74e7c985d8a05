"""The search for lambda: it finds a known answer, every trial starts alike, and the tool prints a key."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from detr_distill.engine.calibration import KEY, calibrate, measure_share
from detr_distill.engine.configuration import build_config
from detr_distill.errors import ConfigError

import pytest
import yaml
from builders import ROOT

SMALL = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "MODEL.FPN.OUT_CHANNELS", "16", "OUTPUT_DIR", "unused"]


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


def test_trials_start_alike_and_leave_nothing():
    cfg = build_config(str(ROOT / "configs/digits/sssd_retinanet.yaml"), SMALL)
    cfg.MODEL.DISTILL.FEATURE_LOSS.WEIGHT = 10.0
    first, again = measure_share(cfg, 2), measure_share(cfg, 2)
    assert first == again and 0 < first < 1
    cfg.merge_from_list([KEY, 40.0])
    assert measure_share(cfg, 2) > first
    assert not Path("unused").exists()


def test_the_tool_prints_the_key(capsys):
    spec = importlib.util.spec_from_file_location("calibrate_lambda", ROOT / "tools/calibrate_lambda.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = ["--config-file", str(ROOT / "configs/digits/sssd_retinanet.yaml"), "--num-gpus", "0"]
    tool.main([*config, "--iterations", "2", "--probes", "2", "--target-share", "0.3", *SMALL])
    found = yaml.safe_load(capsys.readouterr().out.strip().splitlines()[-1])
    assert 1 <= found["MODEL"]["DISTILL"]["FEATURE_LOSS"]["WEIGHT"] <= 100
    with pytest.raises(SystemExit):
        tool.main(["--config-file", str(ROOT / "configs/digits/retinanet_student.yaml"), "--num-gpus", "0"])
    assert "does not distil with FeatureLoss" in capsys.readouterr().err
