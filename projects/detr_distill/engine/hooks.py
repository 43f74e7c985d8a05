"""What happens between training steps: evaluation, and keeping the best checkpoint."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..checkpoint.checkpointer import SafeCheckpointer
from ..checkpoint.files import write_atomically
from .best_metric import KEY, metric_names

logger = logging.getLogger(__name__)


class EvaluationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last, never after a failed step.

    Args:
        period: in iterations; 0 evaluates after the last alone.
        evaluate: returns nested metrics, empty on all processes but the first.
        keep_best: is told the flat metrics and the iteration, on the first process.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict], keep_best: Callable[[dict, int], None] | None = None):
        self._period = period
        self._evaluate = evaluate
        self._keep_best = keep_best

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._run()

    def after_train(self) -> None:
        # A finished run that is resumed makes no step; its evaluation may be what was missing.
        if self.trainer.start_iter >= self.trainer.max_iter:
            self._run()

    def _run(self) -> None:
        metrics = flatten_results_dict(self._evaluate())
        if comm.is_main_process():
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
            if self._keep_best is not None:
                self._keep_best(metrics, min(self.trainer.iter, self.trainer.max_iter - 1))
        comm.synchronize()


class BestCheckpoint:
    """Keeps the weights with the highest value of a metric as ``model_best.pth``.

    The value lives in ``model_best.json`` beside the weights: a resumed run goes on with it, whatever was lost.

    Args:
        checkpointer: writes. metric: flat name, such as ``bbox/AP``; with several test sets it is of the first that has
            it, unless it starts with a set's name, ``name/bbox/AP``. test_sets: in the order of their evaluation.
    """

    def __init__(self, checkpointer: SafeCheckpointer, metric: str, test_sets: Sequence[str] = ()):
        self._checkpointer = checkpointer
        self._metric = metric
        self._names = metric_names(metric, test_sets)
        self._record = Path(checkpointer.save_dir) / "model_best.json"
        self._has_spoken = False

    def __call__(self, metrics: dict[str, float], iteration: int) -> None:
        name = next((name for name in self._names if name in metrics), None)
        self._say_once(name, metrics)
        if name is None:
            return
        value = metrics[name]
        if not math.isfinite(value) or value <= self.best_value(name):
            return
        # Weights first: if we are stopped in between, the next evaluation of the same weights writes both again.
        self._checkpointer.save_untagged("model_best")
        record = {"metric": name, "value": float(value), "iteration": iteration}
        write_atomically(self._record, lambda file: file.write(json.dumps(record).encode()))
        logger.info("Best %s so far: %.4f at iteration %d, kept as model_best.pth", name, value, iteration)

    def best_value(self, name: str = "") -> float:
        """Of this run so far, by a metric's full name, or the configured one; minus infinity before the first."""
        if not os.path.isfile(self._record):
            return -math.inf
        record = json.loads(self._record.read_text())
        return record["value"] if record["metric"] == (name or self._metric) else -math.inf

    def _say_once(self, name: str | None, metrics: dict[str, float]) -> None:
        """Which set decides, where the configuration leaves it to their order, or that none does."""
        if self._has_spoken:
            return
        self._has_spoken = True
        if name is None:
            computed = ", ".join(metrics) or "none"
            logger.warning(
                "%s %s was not computed, so no checkpoint is the best; there are: %s", KEY, *(self._metric, computed)
            )
        elif name.endswith(f"/{self._metric}"):
            logger.info("model_best.pth has the highest %s; %s can name that of another test set.", name, KEY)
