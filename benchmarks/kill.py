"""Kills runs with signal 9 at random moments, resumes them, and compares them with an uninterrupted run bit for bit.

    python benchmarks/kill.py --trials 50 --json benchmarks/results/kill.json

Each trial kills a small training on digits in one of the things that it does, at a call and after a delay that follow
from the seed. What must be equal in the end: every tensor and number of every checkpoint, the weights of the student,
the results, the evaluations in ``metrics.json``; and no step is repeated but those since the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from detr_distill.checkpoint import SafeCheckpointer
from detr_distill.data import build_digits
from detr_distill.engine import DistillTrainer, StepTrainer, launch
from detr_distill.engine.hooks import BestCheckpoint, FinalFiles

import numpy as np
import torch
from common import ROOT, write_result

ITERATIONS, CHECKPOINT_PERIOD, EVALUATION_PERIOD = 24, 4, 6
CONFIG = "configs/digits/conditional_student.yaml"
SETTINGS = {
    "MODEL.CONV_BACKBONE.CHANNELS": "[8, 8, 8]",
    "MODEL.DETR.HIDDEN_DIM": "16",
    "MODEL.DETR.NUM_HEADS": "2",
    "MODEL.DETR.FFN_DIM": "24",
    "MODEL.DETR.DROPOUT": "0.1",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": str(ITERATIONS),
    "SOLVER.WARMUP_ITERS": "2",
    "SOLVER.CHECKPOINT_PERIOD": str(CHECKPOINT_PERIOD),
    "TEST.EVAL_PERIOD": str(EVALUATION_PERIOD),
    "DATASETS.TRAIN": "('few_train',)",
    "DATASETS.TEST": "('few_val',)",
}
# What a run is killed in: the method that does it.
MOMENTS: dict[str, tuple[type, str]] = {
    "training": (StepTrainer, "run_step"),
    "checkpoint": (SafeCheckpointer, "save"),
    "evaluation": (DistillTrainer, "evaluate"),
    "best checkpoint": (BestCheckpoint, "__call__"),
    "export": (FinalFiles, "_save_student"),
}


class Mark(NamedTuple):
    """A call that began: which of ``MOMENTS``, how many there were before it, and when (seconds)."""

    moment: str
    number: int
    time: float


class Running:
    """A training in a process of its own, which tells when it begins what.

    Args:
        folder: ``OUTPUT_DIR``. entries: ``DATASETS.REGISTER``. flags: of the command line.
    """

    def __init__(self, folder: Path, entries: str, *flags: str):
        self.log = folder.with_name(f"{folder.name}.log")
        argv = ["--config-file", str(ROOT / CONFIG), "--num-gpus", "0", *flags, "DATASETS.REGISTER", entries]
        argv += ["OUTPUT_DIR", str(folder), *(word for pair in SETTINGS.items() for word in pair)]
        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(argv, self.log, writing)
        os.close(writing)
        self._marks = os.fdopen(reading)

    def marks(self) -> Iterator[Mark]:
        """As they come, until the process ends."""
        counts: Counter[str] = Counter()
        for line in self._marks:
            yield Mark(line.strip(), counts[line.strip()], time.perf_counter())
            counts[line.strip()] += 1

    def wait(self) -> int:
        """The exit status, negative for a signal's number."""
        self._marks.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _run(argv: list[str], log: Path, pipe: int) -> None:
    """What the new process does; it does not return."""
    status = 1
    try:
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        for descriptor in (1, 2):
            os.dup2(sys.stdout.fileno(), descriptor)
        for moment, (owner, name) in MOMENTS.items():
            setattr(owner, name, _announced(getattr(owner, name), moment, pipe))
        launch.main(argv)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def _announced(method: Callable, moment: str, pipe: int) -> Callable:
    def announce(*arguments: Any, **named: Any) -> Any:
        os.write(pipe, f"{moment}\n".encode())
        result = method(*arguments, **named)
        os.write(pipe, f"end of {moment}\n".encode())
        return result

    return announce


def few_digits(root: Path) -> str:
    """Makes both data sets of eight images; the value of ``DATASETS.REGISTER``."""
    files = {split: build_digits(root, split, 8) for split in ("train", "val")}
    return json.dumps([[f"few_{s}", f"{f}/annotations/instances.json", f"{f}/images"] for s, f in files.items()])


def uninterrupted(folder: Path, entries: str) -> dict[str, list[float]]:
    """Seconds of each call of each moment of a whole run."""
    running = Running(folder, entries)
    begun: dict[str, float] = {}
    seconds = defaultdict(list)
    for mark in running.marks():
        begun[mark.moment] = mark.time
        if mark.moment.startswith("end of "):
            moment = mark.moment.removeprefix("end of ")
            seconds[moment].append(mark.time - begun[moment])
    if running.wait():
        sys.exit(running.log.read_text())
    return dict(seconds)


def killed(folder: Path, entries: str, moment: str, number: int, delay: float) -> int:
    """Steps that a run had begun when it was killed, ``delay`` seconds into a call."""
    running = Running(folder, entries)
    steps = 0
    for mark in running.marks():
        steps += mark.moment == "training"
        if (mark.moment, mark.number) == (moment, number):
            time.sleep(delay)
            running.kill()
    running.wait()
    return steps


def resumed(folder: Path, entries: str) -> tuple[int, int]:
    """Exit status of ``--resume``, and the iteration from which it went on."""
    running = Running(folder, entries, "--resume")
    for _ in running.marks():
        pass
    status = running.wait()
    found = re.findall(r"Starting training from iteration (\d+)", running.log.read_text())
    return status, int(found[-1]) if found else -1


def differences(folder: Path, whole: Path) -> list[str]:
    """Names of the files of a run that are not those of another one."""
    names = [path.name for path in whole.iterdir() if path.suffix in (".pth", ".json")] + ["last_checkpoint"]
    found = [name for name in names if not _equal(folder / name, whole / name)]
    return found + [path.name for path in folder.glob("*.tmp")]


def _equal(first: Path, second: Path) -> bool:
    if not first.is_file():
        return False
    if first.suffix == ".pth":
        return _same(*(torch.load(path, weights_only=True) for path in (first, second)))
    if first.name == "metrics.json":
        return _evaluations(first) == _evaluations(second)
    return first.read_bytes() == second.read_bytes()


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


def _evaluations(file: Path) -> dict[int, dict]:
    """By iteration, and the iterations at which losses were written; medians and times differ after a restart."""
    lines: dict[int, dict] = defaultdict(dict)
    for line in file.read_text().splitlines():
        entry = json.loads(line, parse_constant=lambda name: f"no JSON: {name}")
        lines[entry["iteration"]] |= {name: value for name, value in entry.items() if "/" in name}
    return dict(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    random = np.random.default_rng(arguments.seed)
    exact = 0
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        entries = few_digits(root / "digits")
        seconds = uninterrupted(root / "whole", entries)
        for trial in range(arguments.trials):
            moment = list(MOMENTS)[trial % len(MOMENTS)]
            number = int(random.integers(len(seconds[moment])))
            delay = float(random.uniform(0, seconds[moment][number]))
            folder = root / f"trial{trial}"
            begun = killed(folder, entries, moment, number, delay)
            status, start = resumed(folder, entries)
            different = differences(folder, root / "whole")
            result = {"moment": moment, "call": number, "delay": delay, "repeated": begun - start, "status": status}
            result["exact"] = not status and not different and begun - start <= CHECKPOINT_PERIOD
            trials.append({**result, "differences": different})
            print(json.dumps(trials[-1]), flush=True)
            exact = sum(trial["exact"] for trial in trials)
            if arguments.json:
                write_result(
                    arguments.json, {"seed": arguments.seed, "exact": exact, "of": len(trials), "trials": trials}
                )
    print(f"{exact} of {len(trials)} as if they had not been killed")


if __name__ == "__main__":
    main()
