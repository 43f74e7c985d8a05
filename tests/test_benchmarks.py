"""Benchmarks start in both ways, and every result says which commit it was measured at."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from detr_distill.detr.boxes import to_corners

import pytest
import torch

from benchmarks import common, kill, launches, profiling, step_time

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(
    file.stem for file in (ROOT / "benchmarks").glob("*.py") if 'if __name__ == "__main__"' in file.read_text()
)
# Runs the module of its argument as python benchmarks/NAME.py does, where neither detectron2 nor rich can be imported.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(("detectron2", "fvcore", "rich")))
sys.path.insert(0, "benchmarks")
import torch
import deformable_attention as benchmark

arguments = benchmark.make_arguments("decoder", 1, torch.float32, "cpu")
print(tuple(benchmark.load_forms()["pytorch"](arguments[0], benchmark.SHAPES, *arguments[1:]).shape))
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_starts_as_a_module(name, monkeypatch, capsys):
    if name == "peer_transformers":
        pytest.importorskip("transformers")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert done.value.code == 0 and re.search("--(json|csv)", capsys.readouterr().out)


def test_deformable_attention_starts_as_a_file_and_without_detectron2():
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-c", ALONE]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 300, 256)", result.stderr


def test_a_result_is_written_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "COMMIT", "abc-dirty")
    common.write_result(tmp_path / "new" / "result.json", {"ratio": 1.5})
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"commit": "abc-dirty", "ratio": 1.5}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_changed_checkout_is_told_from_its_commit(tmp_path):
    assert common.current_commit(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1\n")
    results = tmp_path / common.RESULTS
    results.mkdir(parents=True)
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = common.current_commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (results / "result.json").write_text("{}")  # what a benchmark writes says nothing about the code
    assert common.current_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2\n")
    assert common.current_commit(tmp_path) == f"{commit}-dirty"


def test_launches_are_counted_without_views_and_by_the_line_that_asked_for_them():
    first, second = (torch.tensor([[[0.5, 0.5, size, size]]], requires_grad=True) for size in (0.2, 0.4))
    with torch.autograd.detect_anomaly(check_nan=False):
        forward, corners = launches.count(lambda: to_corners(first).view(4).detach() + second.flatten())
        backward, _ = launches.count(corners.sum().backward)
    assert forward["launches"] == sum(forward["by_operator"].values()) == sum(forward["by_file"].values())
    assert "view" not in forward["by_operator"] and forward["by_file"]["elsewhere"] == 1
    assert set(forward["by_file"]) == {"detr_distill/detr/boxes.py", "elsewhere"} and backward["launches"] > 0


def test_a_distilled_step_is_timed_by_its_phases():
    inputs = common.random_inputs([(64, 96)], num_classes=10, objects=2)
    result = step_time.measure("digits/d3etr_conditional", inputs, 1, "cpu", phases=True)
    assert list(result["phase_seconds"]) == list(profiling.PHASES) and min(result["phase_seconds"].values()) > 0
    assert result["ratio"] > 0 and "gpu" not in result, "there is none"


def test_what_the_gpu_works_is_the_time_that_any_kernel_runs():
    assert profiling._covered([(0, 4), (2, 3), (3, 6), (8, 9)]) == 7


def test_sizes_are_read():
    assert common.read_size("480x640") == (480, 640) and common.read_size("64") == (64, 64)


def test_the_stored_results_name_their_commits():
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", json.loads(file.read_text())["commit"]), file.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="forks after CUDA may have been used")
def test_a_run_that_is_killed_while_it_saves_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    for key, value in {"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 2}.items():
        monkeypatch.setitem(kill.SETTINGS, key, str(value))
    entries = kill.few_digits(tmp_path)
    calls = kill.uninterrupted(tmp_path / "whole", entries)
    assert {moment: len(seconds) for moment, seconds in calls.items()} == {
        "training": 4,
        "checkpoint": 3,
        "evaluation": 2,
        "best checkpoint": 2,
        "export": 1,
    }
    assert kill.killed(tmp_path / "cut", entries, "checkpoint", 1, 0.0) == 4
    assert "model_0000003.pth" in kill.differences(tmp_path / "cut", tmp_path / "whole")
    assert kill.resumed(tmp_path / "cut", entries) == (0, 2)
    assert kill.differences(tmp_path / "cut", tmp_path / "whole") == []
