"""What each process of the label encoder's distributed test does; a spawned process can import it."""

from __future__ import annotations

import detr_distill  # noqa: F401  # isort: skip  (before detectron2: its repairs)

import datetime
import os

from detr_distill.distill.balance import ShareBalance
from detr_distill.engine.step import StepTrainer

import torch
import torch.distributed
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.distill.label_teachers import build_distilling
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
DISTILLED, OTHERS = (2.0, 1.0), (1.0, 5.0)  # losses of each process


def build_model():
    torch.manual_seed(0)
    # Without a context row an image without objects gives the encoder nothing at all.
    return build_distilling("retinanet", LABEL_ENCODER__CONTEXT=False, BALANCE__TARGET_SHARE=0.4)


def work(rank: int, folder: str) -> None:
    """Steers a weight by losses of its own; then two steps, in each of which one process has no objects."""
    torch.set_num_threads(1)
    # A process that waits for gradients which the other never has must fail soon.
    timeout = datetime.timedelta(seconds=30)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timeout)
    balance = ShareBalance(0.4, iterations=1, bounds=(1e-3, 1e3))
    balance({"loss_distill": torch.tensor(DISTILLED[rank])}, {"loss": torch.tensor(OTHERS[rank])}, 0)

    model = build_model()
    sizes = ((64, 96), (96, 64))
    batches = [make_inputs(sizes=sizes, counts=(2, 3) if step == rank else (0, 0), seed=rank) for step in range(2)]
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    trainer = StepTrainer(DistributedDataParallel(model, broadcast_buffers=False), batches, optimizer)
    with EventStorage(0):
        for trainer.iter in range(2):
            trainer.run_step()
    torch.save({"factor": balance.factor, "model": model.state_dict()}, f"{folder}/{rank}.pth")
    torch.distributed.barrier()
    # Gloo's threads now and then abort while the interpreter takes a process down; there is nothing left to take down.
    os._exit(0)
