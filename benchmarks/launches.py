"""Operators of a training step that launch a kernel, counted on a CPU: of the step's host work, what no GPU hides.

    python benchmarks/launches.py --method d3etr --json launches.json

For the plain student, its plain teacher and the distilling model: forward, backward and the optimizer's step with
clipping. Small images: the number does not depend on their size. What only looks at the same memory in another shape,
or allocates, launches nothing and is not counted. Some operators run several kernels, and a CPU has other branches than
CUDA, so this is no count of kernels; that is ``step_time.py`` on a GPU.
Keys of the JSON: for each model and part ``launches``, ``by_operator`` and ``by_file``, the files of the project (or of
detectron2) whose lines called them, in the backward pass those of the forward operator; and the setting.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from detr_distill.distill.students.base import StudentStep
from detr_distill.engine.precision import GradientClipper, clipped_apart
from detr_distill.engine.solver import build_optimizer
from detr_distill.engine.step import add_up

import torch
from common import random_inputs, training_step, write_result
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from step_time import METHODS, build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# Beside views: what allocates, compares descriptions of tensors, or waits instead of computing.
NOTHING_TO_COMPUTE = frozenset(
    {
        *("_unsafe_view", "resize_", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("is_same_size", "promote_types", "_local_scalar_dense", "_record_function_enter_new"),
        "_record_function_exit",
    }
)
PROJECT_FILE = re.compile(r"(?:projects/detr_distill|detectron2)/[^\"]*\.py")


class Launches(TorchDispatchMode):
    """Counts the operators within its block.

    Attributes:
        by_operator: launches by the operator's name. by_file: by the file that called it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: collections.Counter[str] = collections.Counter()
        self.by_file: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in NOTHING_TO_COMPUTE:
            self.by_operator[name] += 1
            self.by_file[_calling_file()] += 1
        return func(*args, **(kwargs or {}))

    def result(self) -> dict:
        """What was counted, the most frequent first."""
        parts = {"by_operator": self.by_operator, "by_file": self.by_file}
        return {
            "launches": self.by_operator.total(),
            **{key: dict(counter.most_common()) for key, counter in parts.items()},
        }


def _calling_file() -> str:
    """The innermost file of the project or of detectron2; in a backward pass that of the forward operator."""
    node = torch._C._current_autograd_node()
    if node is not None:
        # Anomaly mode keeps where the forward operator was called.
        metadata: dict[str, Any] = node.metadata  # type: ignore[assignment]
        return _file_in(reversed(metadata.get("traceback_") or []))
    frame = sys._getframe(2)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_filename)
        frame = frame.f_back
    return _file_in(names)


def _file_in(lines: Iterable[str]) -> str:
    found = next((match for line in lines if (match := PROJECT_FILE.search(line))), None)
    return "elsewhere" if found is None else found.group().removeprefix("projects/")


def count(step: Callable[[], Any]) -> tuple[dict, Any]:
    """The launches of a call, and what it returned."""
    with Launches() as launches:
        value = step()
    return launches.result(), value


def count_training(model: nn.Module, inputs: list[dict], cfg: CfgNode) -> dict[str, dict]:
    """The launches of ``forward``, ``backward`` and ``optimizer``; the losses' sum belongs to the second."""
    optimizer, clipper = build_optimizer(cfg, model), GradientClipper.from_config(cfg)
    training_step(model, inputs, optimizer)  # what is made once and kept is no part of a step
    clipped = clipped_apart(model)
    with torch.autograd.detect_anomaly(check_nan=False):
        forward, losses = count(partial(model, inputs))
        backward, _ = count(lambda: add_up(losses).backward())
    step, _ = count(lambda: (clipper(*clipped), optimizer.step()))
    return {"forward": forward, "backward": backward, "optimizer": step}


def measure(config: str, size: int, batch: int) -> dict[str, dict[str, dict]]:
    """The launches of each model, by part."""
    with tempfile.TemporaryDirectory() as folder:
        distilled, plain, teacher, cfg = build(config, "cpu", Path(folder))
    cfg.SOLVER.BASE_LR = 0.0
    inputs = random_inputs([(size, size)] * batch, num_classes=80)
    with EventStorage():  # detectron2's own heads write to it
        found = {"plain": count_training(plain, inputs, cfg)}
        if teacher is not None:
            look = partial(teacher, StudentStep(inputs), frozenset())
            look()
            found["teacher"] = {"forward": count(look)[0]}
        found["distilled"] = count_training(distilled, inputs, cfg)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--size", type=int, default=128, help="side of the square images, pixels")
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = measure(METHODS[arguments.method].config, arguments.size, arguments.batch)
    setting = {"method": arguments.method, "size": arguments.size, "batch": arguments.batch}
    write_result(arguments.json, {**setting, "versions": {"torch": torch.__version__}, **found})
    for model, parts in found.items():
        numbers = {name: part["launches"] for name, part in parts.items()}
        step = sum(value for name, value in numbers.items() if name != "optimizer")
        print(f"{model}: {step} ({', '.join(f'{name} {value}' for name, value in numbers.items())})")


if __name__ == "__main__":
    main()
