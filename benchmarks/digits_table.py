"""The digits table of docs/benchmarks.md: every row over several seeds, from the same command that a user types.

    python benchmarks/digits_table.py --json benchmarks/results/digits.json

First the plain student at several learning rates; the rate with the best mean AP is used by every other row. Then, at
equal iterations: D3ETR and its two halves, and the auxiliary group without a teacher; and the plain student for the
time that a D3ETR run takes, by the ratio of their steps measured in turn in this process. Runs already in the JSON are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detr_distill.data import build_train_loader
from detr_distill.engine import build_config

import torch
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PLAIN, D3ETR = "configs/digits/conditional_student.yaml", "configs/digits/d3etr_conditional.yaml"
NO_TEACHER = ["MODEL.DISTILL.TEACHER.NAME", "", "MODEL.DISTILL.LOSSES", "()"]
ROWS = {
    "D3ETR (adaptive + fixed)": (D3ETR, []),
    "adaptive only": (D3ETR, ["MODEL.DISTILL.MATCHERS", '("AdaptiveMatcher",)']),
    "fixed only": (D3ETR, ["MODEL.DISTILL.MATCHERS", '("FixedMatcher",)']),
    "D3ETR, predictions only": (D3ETR, ["MODEL.DISTILL.LOSSES", '("PredictionLoss",)']),
    "D3ETR, plain soft cross-entropy over all pairs": (
        D3ETR,
        [
            *("MODEL.DISTILL.PREDICTION_LOSS.DIVERGENCE", "bce"),
            *("MODEL.DISTILL.PREDICTION_LOSS.NORMALIZER", "pairs"),
            *("MODEL.DISTILL.PREDICTION_LOSS.BOX_SCORE_THRESHOLD", "0.0"),
        ],
    ),
    "control: auxiliary group without a teacher": (
        D3ETR,
        [*NO_TEACHER, "MODEL.DISTILL.MATCHERS", '("ExtraGroupMatcher",)'],
    ),
}


def train(config: str, overrides: list[str], seed: int) -> dict:
    """One run: its final AP, AP50, AP75 on digits_val, and the seconds spent in training steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_net.py", "--config-file", config, "--num-gpus", "0", "OUTPUT_DIR", folder]
        command += ["SEED", str(seed), "TEST.EVAL_PERIOD", "0", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        boxes = json.loads((Path(folder) / "results.json").read_text())["datasets"]["digits_val"]["bbox"]
    return {key: boxes[key] for key in ("AP", "AP50", "AP75")}


def step_ratio(rounds: int = 40) -> float:
    """Time of a D3ETR training step over the plain student's: medians of steps taken in turn, one thread.

    Loading and the optimizer's step are left out, so the plain control gets a few iterations too many.
    """
    torch.set_num_threads(1)
    models = [build_model(build_config(str(ROOT / file), ["MODEL.DEVICE", "cpu"])).train() for file in (D3ETR, PLAIN)]
    batches = iter(build_train_loader(build_config(str(ROOT / PLAIN), ["DATALOADER.NUM_WORKERS", "0"])))
    seconds: list[list[float]] = [[], []]
    for _, batch in zip(range(rounds), batches, strict=False):
        for model, times in zip(models, seconds, strict=True):
            start = time.perf_counter()
            sum(model(batch).values()).backward()
            times.append(time.perf_counter() - start)
            model.zero_grad()
    distilled, plain = (statistics.median(times) for times in seconds)
    return distilled / plain


class Study:
    """Runs that are kept in a JSON file, so that an interrupted study goes on where it stopped."""

    def __init__(self, file: Path, seeds: list[int], parallel: int):
        self.file, self.seeds, self.parallel = file, seeds, parallel
        self.runs: dict[str, dict] = json.loads(file.read_text())["runs"] if file.exists() else {}

    def remember(self, key: str, measure: Callable[[], float]) -> float:
        """A measurement that is taken once and kept with the runs."""
        if key not in self.runs:
            self.runs[key] = {"value": measure()}
            self.save({})
        return self.runs[key]["value"]

    def save(self, result: dict) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**result, "runs": self.runs}, indent=1))

    def row(self, name: str, config: str, overrides: list[str]) -> list[dict]:
        wanted = {f"{name} | seed {seed}": seed for seed in self.seeds}
        missing = [key for key in wanted if key not in self.runs]
        with ThreadPoolExecutor(self.parallel) as pool:
            for key, run in zip(
                missing, pool.map(lambda key: train(config, overrides, wanted[key]), missing), strict=False
            ):
                self.runs[key] = run
                print(f"{key}: AP {run['AP']:.1f}", flush=True)
                self.save({})
        return [self.runs[key] for key in wanted]


def summary(runs: list[dict]) -> dict:
    """Mean and standard deviation over seeds."""
    values = {key: [run[key] for run in runs] for key in ("AP", "AP50", "AP75")}
    return {key: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for key, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.003, 0.004])
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study = Study(arguments.json, arguments.seeds, arguments.parallel)
    if study.remember("iterations", lambda: arguments.iterations) != arguments.iterations:
        sys.exit(f"{arguments.json} holds runs of another length; give --json another file.")
    length = ["SOLVER.MAX_ITER", str(arguments.iterations)]
    sweep = {
        rate: study.row(f"plain, rate {rate}", PLAIN, [*length, "SOLVER.BASE_LR", str(rate)])
        for rate in arguments.rates
    }
    best = max(sweep, key=lambda rate: summary(sweep[rate])["AP"][0])
    rate = ["SOLVER.BASE_LR", str(best)]
    rows = {f"plain (rate {value})": runs for value, runs in sweep.items()}
    for name, (config, overrides) in ROWS.items():
        rows[name] = study.row(name, config, [*length, *rate, *overrides])
    ratio = study.remember("step_ratio", step_ratio)
    longer = round(arguments.iterations * ratio)
    name = "control: plain for D3ETR's time"
    rows[name] = study.row(name, PLAIN, ["SOLVER.MAX_ITER", str(longer), *rate])

    table = Table("row", "AP", "AP50", "AP75", "gain", title=f"digits_val, rate {best}, step ratio {ratio:.2f}")
    plain = summary(sweep[best])["AP"][0]
    for name, runs in rows.items():
        found = summary(runs)
        scores = [f"{found[key][0]:.1f} ± {found[key][1]:.1f}" for key in ("AP", "AP50", "AP75")]
        gain = f"{found['AP'][0] - plain:+.1f}"
        table.add_row(name, *scores, gain)
    Console(width=120).print(table)
    result = {
        "rate": best,
        "iterations": arguments.iterations,
        "iterations_equal_time": longer,
        "step_ratio": ratio,
        "rows": {name: summary(runs) for name, runs in rows.items()},
    }
    study.save(result)


if __name__ == "__main__":
    main()
