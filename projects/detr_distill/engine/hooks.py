"""What happens between training steps: evaluation, keeping the best checkpoint, writing the student at the end."""

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
from detectron2.utils.events import EventWriter

from ..checkpoint import save_weights, student_state_dict
from ..checkpoint.checkpointer import BEST, FINAL, SafeCheckpointer
from ..checkpoint.export import undistributed
from ..checkpoint.files import read_checkpoint
from ..checkpoint.writing import write_atomically
from ..errors import CheckpointError
from ..hugging_face import TransformersStudent
from ..hugging_face.folder import save_folder
from ..protocols import student_in
from .starting.best_metric import KEY, metric_names

logger = logging.getLogger(__name__)


class EvaluationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last, never after a failed step.

    Args:
        period: in iterations; 0 evaluates after the last alone.
        evaluate: returns nested metrics, empty on all processes but the first.
        keep_best: is told the flat metrics and the iteration, on the first process.
        was_evaluated: whether a run that is resumed had evaluated after an iteration.
        writers: write the metrics down at once; until then the evaluation does not count as done.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict],
        keep_best: Callable[[dict, int], None] | None = None,
        was_evaluated: Callable[[int], bool] = lambda iteration: True,
        writers: Sequence[EventWriter] = (),
    ):
        self._period = period
        self._evaluate = evaluate
        self._keep_best = keep_best
        self._was_evaluated = was_evaluated
        self._writers = writers

    def before_train(self) -> None:
        # A run may be killed between a checkpoint and its evaluation, and a finished one makes no further step.
        done = self.trainer.start_iter
        if done == 0 or not self._is_due(done):
            return
        evaluated = comm.all_gather(self._was_evaluated(done - 1))[0]  # the first process has the files
        if done >= self.trainer.max_iter or not evaluated:
            self.trainer.iter = self.trainer.storage.iter = done - 1
            self._run()

    def after_step(self) -> None:
        if self._is_due(self.trainer.iter + 1):
            self._run()

    def _is_due(self, done: int) -> bool:
        return done >= self.trainer.max_iter or (self._period > 0 and done % self._period == 0)

    def _run(self) -> None:
        metrics = flatten_results_dict(self._evaluate())
        if comm.is_main_process():
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
            if self._keep_best is not None:
                self._keep_best(metrics, min(self.trainer.iter, self.trainer.max_iter - 1))
        for writer in self._writers:
            writer.write()
        comm.synchronize()


class FinalFiles(HookBase):
    """Writes the plain student's weights after the last step, of a model of transformers as its folder too.

    A run that was killed there had its last step in a checkpoint, but maybe not in ``model_final.pth`` and the
    student's file: resumed, it writes both.

    Args:
        checkpointer: of the run. student_file: name of the student's, in the same folder.
    """

    def __init__(self, checkpointer: SafeCheckpointer, student_file: str):
        self._checkpointer = checkpointer
        self._student_file = os.path.join(checkpointer.save_dir, student_file)

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if done < self.trainer.max_iter:
            return
        self.trainer.iter = done - 1
        if Path(self._checkpointer.get_checkpoint_file()).stem != FINAL:
            self._checkpointer.save(FINAL, iteration=done - 1)
        self._save_student()

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self._save_student()

    def _save_student(self) -> None:
        names, model = self._checkpointer.class_names, undistributed(self.trainer.detector)
        save_weights(student_state_dict(model), self._student_file, names)
        detector = student_in(model) or model
        if isinstance(detector, TransformersStudent):
            save_folder(detector, Path(self._student_file).with_suffix(""), names)


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
        self._record = Path(checkpointer.save_dir) / f"{BEST}.json"
        self._names = metric_names(metric, test_sets)
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
        record = {"metric": name, "value": float(value), "iteration": iteration}
        self._checkpointer.save_untagged(BEST, best=record)
        write_atomically(self._record, lambda file: file.write(json.dumps(record).encode()))
        logger.info("Best %s so far: %.4f at iteration %d, kept as model_best.pth", name, value, iteration)

    def best_value(self, name: str = "") -> float:
        """Of this run so far, by a metric's full name, or the configured one; minus infinity before the first."""
        name = name or self._metric
        try:
            record = json.loads(self._record.read_text())
            return float(record["value"]) if record["metric"] == name else -math.inf
        except FileNotFoundError:
            return -math.inf
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%s): taking what %s.pth says of itself.", self._record, error, BEST)
        return self._value_of_weights(name)

    def _value_of_weights(self, name: str) -> float:
        try:
            record = read_checkpoint(self._record.with_suffix(".pth")).get("best", {})
        except CheckpointError as error:
            logger.warning("%s", error)
            return -math.inf
        return record["value"] if record.get("metric") == name else -math.inf

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
