"""A model, a loader and a configuration small enough to train in a test."""

from __future__ import annotations

import detr_distill  # noqa: F401  # isort: skip  (before detectron2: its repairs)

import logging
from typing import ClassVar

from detr_distill.engine import DistillTrainer, build_config
from detr_distill.engine.process import LOGGERS

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Two layers with dropout and batch normalisation; a NaN input makes a NaN loss."""

    def __init__(self, cfg=None):
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 1)

    def forward(self, batch):
        inputs = torch.stack([sample["image"] for sample in batch])
        outputs = self.head(self.dropout(self.norm(self.backbone(inputs)).relu()))
        return {"loss_square": outputs.square().mean(), "loss_mean": (outputs - 1).abs().mean()}


class ToyLoader:
    """Batch n depends on the seed and n alone; starts when the first batch is asked for."""

    def __init__(self, bad_batch: int | None = None, draws: int = 0):
        self.seed = 0
        self.start = 0
        self.bad_batch = bad_batch
        self.draws = draws

    def start_from(self, batch_number: int) -> None:
        self.start = batch_number

    def __iter__(self):
        number = self.start
        while True:
            torch.rand(self.draws)  # a loader in this process may use its random generator
            generator = torch.Generator().manual_seed(self.seed * 1000 + number)
            images = torch.randn(4, 4, generator=generator)
            if number == self.bad_batch:
                images[0] = float("nan")
            yield [
                {"image": image, "image_id": 10 * number + k, "file_name": f"{k}.jpg"} for k, image in enumerate(images)
            ]
            number += 1


def toy_config(folder, **changes):
    """AdamW with warmup and cosine decay, a checkpoint every 3 of 8 iterations, no test set."""
    values = {
        "MODEL.META_ARCHITECTURE": "ToyDetector",
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": str(folder),
        "SEED": "3",
        "DATASETS.TEST": "()",
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": "0.01",
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS": "3",
        "SOLVER.MAX_ITER": "8",
        "SOLVER.CHECKPOINT_PERIOD": "3",
        **{key: str(value) for key, value in changes.items()},
    }
    cfg = build_config("", [part for pair in values.items() for part in pair])
    cfg.freeze()
    return cfg


class ToyTrainer(DistillTrainer):
    """The real trainer on toy batches; records the loss of every step."""

    loader_arguments: ClassVar[dict] = {}

    def __init__(self, cfg):
        self.recorded: list[float] = []
        super().__init__(cfg)

    @classmethod
    def build_train_loader(cls, cfg):
        return ToyLoader(**cls.loader_arguments)

    def after_step(self):
        super().after_step()
        self.recorded.append(self.storage.latest()["total_loss"][0])


def toy_trainer(cfg, *, resume: bool = False, **loader_arguments) -> ToyTrainer:
    torch.manual_seed(0)
    kind = type("ToyTrainer", (ToyTrainer,), {"loader_arguments": loader_arguments})
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture
def untouched_loggers():
    """A run gives the packages' loggers handlers of its own and keeps their lines from pytest; this undoes it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
