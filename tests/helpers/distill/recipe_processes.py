"""Recipes of every family in one process, and in each of two; a module of its own, so that a process can import it."""

from __future__ import annotations

import detr_distill  # noqa: F401  # isort: skip  (before detectron2: its repairs)

import os

import torch
import torch.distributed
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise
from helpers.golden_cases import DIGITS
from helpers.make_golden import build_untrained, draw

WORLD = 2
RECIPES = ("d3etr_conditional", "detrdistill_conditional", "sssd_fcos", "kd_detr_conditional")
FCOS_START = 300.0  # detectron2's first guess of a batch's locations of objects, for the batch of a process
BATCH = {"sizes": ((64, 96), (64, 96)), "counts": (2, 4)}


def run_recipe(name: str, images: slice, share: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Losses of a training step on some of the batch's images, and the gradient of the student's first weight.

    Args:
        share: of the whole batch that these images are.
    """
    # What sees a batch as one, normalisation by its statistics, and random numbers are left out.
    cfg, model = build_untrained(DIGITS / f"{name}.yaml", ("MODEL.DETR.DROPOUT", "0.0"))
    draw(model.student, seed=1, spread=0.1)
    draw(model.teacher.detector or model.teacher, seed=2, spread=0.1)
    randomise(model.matchers, seed=3)
    randomise(model.losses, seed=4)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    if name == "sssd_fcos":
        model.student.loss_normalizer = FCOS_START * share
    torch.manual_seed(0)
    with EventStorage():
        batch = make_inputs(**BATCH, num_classes=cfg.MODEL.DETR.NUM_CLASSES)[images]
        losses = model(batch, iteration=0)
    weight = next(value for value in model.student.parameters() if value.requires_grad)
    (gradient,) = torch.autograd.grad(sum(losses.values()), weight)
    return {key: value.detach() for key, value in losses.items()}, gradient


def work(rank: int, folder: str) -> None:
    """Every recipe on one image; the first process stores the means over both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = {}
    for name in RECIPES:
        losses, gradient = run_recipe(name, slice(rank, rank + 1), 1 / WORLD)
        for values in (*losses.values(), gradient):
            torch.distributed.all_reduce(values)
            values /= WORLD
        results[name] = (losses, gradient)
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    torch.distributed.barrier()
    # Gloo's threads now and then abort while the interpreter takes a process down; there is nothing left to take down.
    os._exit(0)
