"""Training and evaluating within the demonstration: the terminal shows a bar, the log files have the rest."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import sys
import time
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from rich.console import Console

from ..commands.predictions import Form, load_sets, write_predictions
from ..engine import DistillTrainer
from ..engine.folder.lock import locked
from ..engine.launch import evaluate_only
from ..engine.process import LOGGERS, set_up_process
from .console import TrainingBar


class DemoTrainer(DistillTrainer):
    """Measures the time of the training steps alone and keeps the AP of every evaluation.

    Args:
        cfg: of the run. name: of the model, for the terminal. console: where to. seconds: that its teacher took before.

    Attributes:
        seconds: of all training steps, and these. results: of the last evaluation.
        curve: (iterations done, seconds of these, AP in 0 to 100).
    """

    def __init__(self, cfg: CfgNode, name: str, console: Console, seconds: float = 0.0):
        self.name = name
        self.bar = TrainingBar(name, console)
        self.seconds = seconds
        self.results: dict = {}
        self.curve: list[tuple[int, float, float]] = []
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        # Before the evaluation, which takes a while: the bar shows the step that is done.
        return [self.bar, *super().build_hooks()]

    def run_step(self) -> None:
        start = time.perf_counter()
        super().run_step()
        self.seconds += time.perf_counter() - start

    def evaluate(self) -> dict:
        self.bar.announce("evaluating")
        results = super().evaluate()
        self.results = results
        self.curve.append((self.iter + 1, self.seconds, results["bbox"]["AP"]))
        self.bar.say(f"{self.name}  AP {results['bbox']['AP']:.2f} after {self.iter + 1} iterations")
        return results


def train(cfg: CfgNode, name: str, console: Console, seconds: float = 0.0) -> DemoTrainer:
    """Trains one student; see :class:`DemoTrainer`."""
    with locked(Path(cfg.OUTPUT_DIR), "--output"):
        prepare_process(cfg, training=True)
        trainer = DemoTrainer(cfg, name, console, seconds)
        trainer.resume_or_load(resume=False)
        trainer.train()
    return trainer


def predict(cfg: CfgNode, folder: Path, console: Console) -> float:
    """Writes what the teacher predicts on the training images to a folder; the seconds that it took."""
    start = time.perf_counter()
    with console.status("the teacher looks at every training image, once"):
        names = cfg.DATASETS.TRAIN
        form = Form(batch=cfg.SOLVER.IMS_PER_BATCH)
        write_predictions(cfg, cfg.MODEL.WEIGHTS, names, load_sets(cfg, names), folder, form)
    seconds = time.perf_counter() - start
    console.print(f"teacher  predictions of all training images in {seconds:.0f} s", highlight=False)
    return seconds


def evaluate_teacher(cfg: CfgNode, console: Console) -> dict:
    """The teacher's metrics, ``{"bbox": {"AP": ...}}``, in 0 to 100."""
    with console.status("evaluating the teacher"):
        prepare_process(cfg, training=False)
        results = evaluate_only(cfg)
    console.print(f"teacher  AP {results['bbox']['AP']:.2f}", highlight=False)
    return results


def prepare_process(cfg: CfgNode, *, training: bool) -> None:
    """Log file and seed of a run; on the terminal only warnings, the bar says the rest."""
    with contextlib.redirect_stdout(io.StringIO()) as swallowed:
        set_up_process(cfg, training=training, command=shlex.join(sys.argv))
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is swallowed:
                handler.setStream(sys.stdout)
                handler.setLevel(logging.WARNING)
