"""Runs of the training program on digits, by the command that a user types, kept in a JSON file."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from detr_distill.data import register_configured
from detr_distill.engine import build_config
from detr_distill.engine.step import DISTILLED_SHARE
from detr_distill.engine.trainer import DistillTrainer

import torch
from common import ROOT, time_in_turn, write_result
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

METRICS = ("AP", "AP50", "AP75")
TEST_SET = "digits_test"  # settings are chosen on digits_val
# Both groups weigh 1, as with fixed matching.
TEACHER_FREE_GROUP = [
    *("MODEL.DETR.TRAINING_GROUPS", '("GroupQueries",)'),
    *("MODEL.DETR.GROUP_QUERIES.NUM_GROUPS", "2"),
    *("MODEL.DETR.GROUP_QUERIES.COMBINE", "sum"),
]


class Run(NamedTuple):
    """What is trained: a configuration file from the repository's root, KEY VALUE overrides, a seed."""

    config: str
    overrides: list[str]
    seed: int


def settings_key(config: str) -> str:
    """Changes with what a configuration file says, its bases included."""
    settings = json.dumps(CfgNode.load_yaml_with_base(str(ROOT / config)), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


def train(run: Run) -> dict:
    """The final AP, AP50 and AP75 on digits_test, and the CPU seconds of the whole command, on one thread.

    CPU seconds include start and final evaluation; they do not grow when other programs share the cores. A distilled
    run also has ``shares``: (iteration, distillation losses / total loss) wherever the run wrote its losses.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "train_net.py", "--config-file", run.config, "--num-gpus", "0"]
        command += ["OUTPUT_DIR", str(folder / "run"), "SEED", str(run.seed), "TEST.EVAL_PERIOD", "0"]
        command += ["DATASETS.TEST", f"['{TEST_SET}']", *run.overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{(folder / 'err').read_text()}")
        shares = distillation_shares((folder / "run" / "metrics.json").read_text())
        boxes = json.loads((folder / "run" / "results.json").read_text())["datasets"][TEST_SET]["bbox"]
    result = {**{key: boxes[key] for key in METRICS}, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return {**result, "shares": shares} if shares else result


def distillation_shares(metrics: str) -> list[tuple[int, float]]:
    """(iteration, distillation losses / total loss) as metrics.json records them; empty for a run without a teacher."""
    entries = [json.loads(line) for line in metrics.splitlines()]
    return [(entry["iteration"], round(entry[DISTILLED_SHARE], 4)) for entry in entries if DISTILLED_SHARE in entry]


def step_ratio(distilled: str, plain: str, rounds: int = 40) -> float:
    """Time of a training iteration of one configuration over another's: medians of iterations in turn, one thread.

    An iteration is the trainer's: batch, losses, gradients, clipping, update.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        iterations = {file: training_iteration(file, folder) for file in (distilled, plain)}
        seconds = time_in_turn(iterations, rounds, "cpu")
    return statistics.median(seconds[distilled]) / statistics.median(seconds[plain])


def training_iteration(file: str, folder: str, more: Sequence[str] = ()) -> Callable[[], None]:
    """One iteration of the run that a configuration file and further KEY VALUE describe, at a call."""
    keys = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", folder, *more]
    cfg = build_config(str(ROOT / file), keys)
    register_configured(cfg)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.iter = trainer._trainer.iter = 0
    trainer.model.train()
    return trainer.run_step


def summary(runs: list[dict]) -> dict:
    """Mean and standard deviation over seeds."""
    values = {key: [run[key] for run in runs] for key in METRICS}
    return {key: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for key, v in values.items()}


class Study:
    """Runs that are kept in a JSON file, so that an interrupted study goes on where it stopped."""

    def __init__(self, file: Path, parallel: int):
        self.file, self.parallel = file, parallel
        self.runs: dict[str, dict] = json.loads(file.read_text())["runs"] if file.exists() else {}

    def remember(self, key: str, measure: Callable[[], float]) -> float:
        """A measurement that is taken once and kept with the runs."""
        if key not in self.runs:
            self.runs[key] = {"value": measure()}
            self.save({})
        return self.runs[key]["value"]

    def save(self, result: dict) -> None:
        """Writes ``result`` and the runs."""
        write_result(self.file, {**result, "runs": self.runs})

    def complete(self, wanted: dict[str, Run]) -> list[dict]:
        """Trains what the file does not have yet, ``parallel`` runs at a time; the results of all, in order."""
        with ThreadPoolExecutor(self.parallel) as pool:
            started = {pool.submit(train, run): key for key, run in wanted.items() if key not in self.runs}
            try:
                for done in as_completed(started):
                    key = started[done]
                    self.runs[key] = done.result()
                    print(f"{key}: AP {self.runs[key]['AP']:.1f}", flush=True)
                    self.save({})
            finally:
                # After a failed run the others would go on, and be lost.
                pool.shutdown(cancel_futures=True)
        return [self.runs[key] for key in wanted]
