"""Whole runs of the trainer on a few images."""

from __future__ import annotations

from detr_distill.engine.trainer import DistillTrainer

import torch


def run(cfg, resume=False, stop_after=None):
    torch.manual_seed(0)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_after is not None:
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


def losses_by_iteration(trainer):
    return {k: trainer.storage.history(k).values() for k in trainer.storage.histories() if "loss" in k}
