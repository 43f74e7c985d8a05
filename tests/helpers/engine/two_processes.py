"""What each process of ``test_distributed`` does; a module of its own, so that a spawned process can import it."""

import detr_distill  # noqa: F401  # isort: skip  (before detectron2: its repairs)

import contextlib
import functools
import os

from detr_distill.engine.capture import WARM_UP, CapturedSteps
from detr_distill.engine.gradients import average_gradients, share_start
from detr_distill.engine.step import StepTrainer
from detr_distill.errors import NonFiniteError

import pytest
import torch
import torch.distributed
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, small_cfg
from helpers.detr.device_solver import solve_as_on_device
from helpers.engine.toy import ToyDetector
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def batch_of(rank: int, number: int, bad: bool = False) -> list[dict]:
    images = torch.randn(4, 4, generator=torch.Generator().manual_seed(100 * rank + number))
    if bad:
        images[1] = float("inf")
    return [{"image": image, "image_id": 100 * rank + k, "file_name": "x.jpg"} for k, image in enumerate(images)]


def fixed_beside_other(rank: int) -> bool:
    """Whether averaged gradients are the ordinary ones where one process has its batch at a fixed place, one not."""
    solve_as_on_device(pytest.MonkeyPatch())
    torch.manual_seed(0)
    model = build_model(small_cfg(MODEL__DETR__DROPOUT=0.0, MODEL__DETR__SIZE_DIVISIBILITY=64)).train()
    inputs = make_inputs(counts=(4, 1) if rank else (2, 1), seed=rank)

    def step(batch):
        losses = model(batch)
        sum(losses.values()).backward()
        return {name: value.detach() for name, value in losses.items()}

    steps = CapturedSteps(step, model, ((64, 64),), objects=3, device=torch.device("cpu"), recorder=NoGraphs())
    found = []
    for run in (step, *[steps] * WARM_UP):
        steps.zero_gradients()
        run(inputs)
        average_gradients(model.parameters())
        found.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    return all(torch.allclose(values, found[0], rtol=1e-4, atol=1e-6) for values in found[1:])


class NoGraphs:
    """Lets a step run where it is."""

    def beside(self):
        return contextlib.nullcontext()


def work(rank: int, folder: str) -> None:
    """Step 0 on good data, step 1 with an infinite image on rank 1 alone."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    model = ToyDetector()
    model.norm = torch.nn.Identity()
    model.dropout = torch.nn.Identity()
    start = {name: value.clone() for name, value in model.head.state_dict().items()}
    batches = [batch_of(rank, number, bad=number == 3 and rank == 1) for number in range(4)]
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    trainer = StepTrainer(wrapped, batches, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2)
    result = {}
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
        result["weight"] = model.head.weight.detach().clone()
        result["metrics"] = {key: value for key, (value, _) in storage.latest().items()}
        trainer.iter = 1
        try:
            trainer.run_step()
        except NonFiniteError as error:
            result["error"] = str(error)
        result["unchanged"] = torch.equal(result["weight"], model.head.weight)
    torch.manual_seed(rank)  # the second process starts otherwise, until it is given the first's weights
    plain = ToyDetector()
    plain.norm = torch.nn.Identity()
    plain.dropout = torch.nn.Identity()
    if rank == 0:
        plain.head.load_state_dict(start)
    share_start(plain)
    capture = functools.partial(CapturedSteps, sizes=(), objects=1, device=torch.device("cpu"), recorder=None)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    steps = functools.partial(capture, obstacle="there is no graph on a CPU")
    trainer = StepTrainer(plain, batches[:2], optimizer, accumulate=2, capture=steps)
    with EventStorage(0):
        trainer.iter = 0
        trainer.run_step()
    result["fixed_beside_other"] = fixed_beside_other(rank)
    result["weight_of_captured"] = plain.head.weight.detach().clone()
    torch.save(result, f"{folder}/{rank}.pth")
    torch.distributed.barrier()
    # Gloo's threads now and then abort while the interpreter takes a process down; there is nothing left to take down.
    os._exit(0)
