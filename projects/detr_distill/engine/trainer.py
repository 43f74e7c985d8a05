"""A training run from a configuration: loaders, model, optimizer, hooks, checkpoints."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..checkpoint import SafeCheckpointer
from ..checkpoint.export import AVERAGED, undistributed
from ..data import build_test_loader, build_train_loader, training_class_names
from ..distill.teacher_start import start_from_teacher
from ..errors import CheckpointError, ConfigError
from ..protocols import follow_optimizer, follow_steps, student_in
from .average import build_average
from .capture import CapturedSteps
from .compiled import compile_backbones
from .evaluation import build_evaluator
from .faults.words import in_words
from .freezing import ParameterFreeze
from .gradients import share_start
from .hooks import BestCheckpoint, EvaluationHook, FinalFiles
from .metrics_file import METRICS_FILE, MetricsWriter, TensorBoardWriter, was_evaluated
from .model import build_named_model
from .precision import GradientClipper, Precision
from .progress import ProgressPrinter
from .results import write_results
from .solver import build_optimizer
from .starting.epochs import in_iterations
from .step import StepTrainer

logger = logging.getLogger(__name__)

WRITER_PERIOD = 20
STUDENT_FILE = "student_final.pth"


class DistillTrainer(DefaultTrainer):
    """detectron2's trainer for any of its models, exactly resumable.

    A checkpoint holds the model and, under ``trainer``: iteration, seed, optimizer, scheduler and loss scale; with
    ``SOLVER.EMA`` the detector's moving average too, which then is what is evaluated and shipped.

    Args:
        cfg: complete configuration.
    """

    def __init__(self, cfg: CfgNode):
        # The base class would build its own step, loaders and checkpointer; only its interface is wanted.
        TrainerBase.__init__(self)
        cfg = in_iterations(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        # fvcore's scripted losses round differently once torch has fused them: a resumed run would differ in its first
        # iterations.
        torch.jit.set_fusion_strategy([])
        model = self.build_model(cfg)
        if cfg.SOLVER.COMPILE:
            compile_backbones(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        if cfg.SOLVER.CAPTURE:
            share_start(model)
        else:
            model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = StepTrainer(
            model,
            self.build_train_loader(cfg),
            optimizer,
            accumulate=cfg.SOLVER.ACCUMULATE,
            precision=Precision.from_config(cfg),
            clipper=GradientClipper.from_config(cfg),
            freeze=ParameterFreeze.from_config(cfg, model),
            capture=functools.partial(CapturedSteps.from_config, cfg) if cfg.SOLVER.CAPTURE else None,
        )
        step_trainer = self._trainer
        follow_optimizer(model, optimizer, lambda: step_trainer.iter)
        self.average = build_average(cfg, model)
        parts: dict[str, Any] = {"trainer": weakref.proxy(self)}
        if self.average is not None:
            follow_steps(self.average, optimizer, lambda: step_trainer.iter)
            parts[AVERAGED] = self.average.average
        self._set_seed(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, training_class_names(cfg), **parts)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return build_named_model(cfg)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except (AssertionError, ValueError) as error:
            keys = "SOLVER.LR_SCHEDULER_NAME, SOLVER.STEPS, SOLVER.BASE_LR_END or SOLVER.WARMUP_*"
            raise ConfigError(f"{keys}: {error or 'the learning rate would end above its start'}") from error

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list:
        """In the order in which they run after a step; checkpoints come before evaluation, so no failure loses one."""
        cfg = self.cfg
        is_main = comm.is_main_process()
        # Hooks live inside the trainer, so they refer to it weakly.
        trainer = weakref.proxy(self)
        metric, sets = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
        best = BestCheckpoint(self.checkpointer, metric, sets) if metric else None
        chosen = [hooks.IterationTimer(), hooks.LRScheduler()]
        # Metrics go to disk before a checkpoint, behind which a resumed run goes on, and after each evaluation.
        writers = self.build_writers() if is_main else []
        metrics = [writer for writer in writers if isinstance(writer, MetricsWriter)]
        if is_main:
            keep = cfg.SOLVER.CHECKPOINT_KEEP or None
            chosen.append(hooks.PeriodicWriter(metrics, period=WRITER_PERIOD))
            chosen.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=keep))
            chosen.append(FinalFiles(self.checkpointer, STUDENT_FILE))
        if sets:
            evaluated = functools.partial(was_evaluated, os.path.join(cfg.OUTPUT_DIR, METRICS_FILE))
            chosen.append(EvaluationHook(cfg.TEST.EVAL_PERIOD, lambda: trainer.evaluate(), best, evaluated, metrics))
        if is_main:
            chosen.append(hooks.PeriodicWriter(writers, period=WRITER_PERIOD))
        return chosen

    def build_writers(self) -> list:
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        return [
            ProgressPrinter(self.max_iter),
            MetricsWriter(os.path.join(folder, METRICS_FILE)),
            TensorBoardWriter(folder),
        ]

    @property
    def detector(self) -> nn.Module:
        """What is evaluated, and shipped in the end: the model, or the moving average of its detector."""
        return self.model if self.average is None else self.average.average

    def evaluate(self) -> dict:
        """Metrics of every test set, nested; also written to ``results.json``. The model stays in training mode."""
        was_training = self.model.training
        results = self.test(self.cfg, self.detector)
        self.model.train(was_training)
        self._last_eval_results = results
        write_results(self.cfg, results, iteration=min(self.iter, self.max_iter - 1))
        return results or {}

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on with the run of the output folder, or initialises the model from ``MODEL.WEIGHTS``.

        Raises:
            CheckpointError: see ``SafeCheckpointer``, or only some machines have the folder's checkpoints.
        """
        found = comm.all_gather(resume and self.checkpointer.has_checkpoint())
        if any(found) and not all(found):
            raise CheckpointError(
                f"--resume: only some of the {len(found)} processes see the checkpoints in {self.cfg.OUTPUT_DIR}. "
                "Use a folder that all machines share, or copy it to each of them."
            )
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if not all(found):
            own = undistributed(self.model)
            start_from_teacher(self.cfg, student_in(own) or own)
            if self.average is not None:
                self.average.restart()
        if all(found):
            self.start_iter = self.iter + 1
            self.data_loader.start_from(self.start_iter * self.cfg.SOLVER.ACCUMULATE)

    def train(self) -> Any:
        """Trains from ``start_iter`` to ``SOLVER.MAX_ITER``; see the base class."""
        with _without_stack_trace():
            return super().train()

    def state_dict(self) -> dict:
        return {
            "iteration": self.iter,
            "seed": self._trainer.seed,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "grad_scaler": self._trainer.precision.scaler.state_dict(),
            "loss_normalizers": {name: module.loss_normalizer for name, module in _dense_heads(self.model)},
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self.iter = state_dict["iteration"]
        self._set_seed(state_dict["seed"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.scheduler.load_state_dict(state_dict["scheduler"])
        if state_dict["grad_scaler"]:
            self._trainer.precision.scaler.load_state_dict(state_dict["grad_scaler"])
        for name, value in state_dict.get("loss_normalizers", {}).items():
            self.model.get_submodule(name).loss_normalizer = value

    def _set_seed(self, seed: int) -> None:
        self._trainer.seed = seed
        self.data_loader.seed = seed


def _dense_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Detectors that divide their loss by a running mean of the objects, which detectron2 leaves out of their state."""
    return ((name, module) for name, module in model.named_modules() if "loss_normalizer" in vars(module))


@contextlib.contextmanager
def _without_stack_trace() -> Iterator[None]:
    """The base class logs every exception with its stack; where there are words the command line prints them."""
    loop_logger = logging.getLogger("detectron2.engine.train_loop")

    def is_wanted(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        return not error or in_words(error) is None

    loop_logger.addFilter(is_wanted)
    try:
        yield
    finally:
        loop_logger.removeFilter(is_wanted)
