"""One training step: load, forward, backward, check, clip, update."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..detr.supervision.cost_flags import CostFlags, collect_cost_flags, count_flags
from ..errors import NonFiniteError
from ..protocols import Recording
from ..randomness import seed_step
from .capture import CapturedSteps, Losses
from .finite import describe_non_finite, name_images
from .freezing import ParameterFreeze
from .gradients import average_gradients
from .metrics import StepMetrics, gather_metrics
from .precision import GradientClipper, Precision, clipped_apart

GRADIENT_NORM = "grad_norm"
FLAGGED_COSTS = "flagged_costs"  # matching costs that are not finite, of which the host knows nothing yet
DISTILLED_SHARE = "distill_share"  # of the distillation losses in the total


class StepTrainer(SimpleTrainer):
    """Runs ``accumulate`` forward-backward passes and one optimizer step an iteration.

    Args:
        model: maps a batch to a dictionary of scalar losses, which are added up.
        data_loader: iterable of batches, not started before the first step.
        optimizer: of the model's parameters.
        accumulate: micro-batches of one step; their losses are averaged.
        precision: autocast and loss scaling; None: float32.
        clipper: gradient clipping; None: only measures the norm.
        seed: of the run, see ``seed_step``.
        freeze: drops gradients that must not be applied yet.
        capture: makes captured steps of the step and the model; None: none is captured.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        precision: Precision | None = None,
        clipper: GradientClipper | None = None,
        seed: int = 0,
        freeze: ParameterFreeze | None = None,
        capture: Callable[[Callable[[list[dict]], Losses], nn.Module], CapturedSteps] | None = None,
    ):
        # The base class may start the loader at once; ours must wait until a resumed run has moved its start.
        super().__init__(model, [], optimizer)
        self.data_loader = data_loader
        self.accumulate = accumulate
        self.precision = precision or Precision("cpu")
        self.clipper = clipper or GradientClipper()
        self._parts = clipped_apart(model)
        self._recording = [module for module in model.modules() if isinstance(module, Recording)]
        self.seed = seed
        self.freeze = freeze or ParameterFreeze([])
        self._captured = None if capture is None else capture(self._forward_backward, model)
        self._batches: Iterator | None = None
        self._last_losses: dict[str, float] = {}

    def run_step(self) -> None:
        """One optimizer step.

        Raises:
            NonFiniteError: a loss, a gradient or a matching cost is infinite or NaN; the weights are as before.
        """
        if not self.model.training:
            raise RuntimeError("The model was left in evaluation mode: whatever evaluates must call model.train().")
        seed_step(self.seed, comm.get_rank(), self.iter)
        micro_batches, data_seconds = self._load()
        if self._captured is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._captured.zero_gradients()
        with collect_cost_flags() as flags:
            losses = self._backward(micro_batches)
        self.freeze(self.iter)
        self.precision.scaler.unscale_(self.optimizer)
        norm = self.clipper(*self._parts)
        values = {name: value for module in self._recording for name, value in module.recorded_values().items()}
        values[FLAGGED_COSTS] = count_flags(flags, norm.device)
        metrics = gather_metrics({**losses, **values, GRADIENT_NORM: norm}, data_seconds)
        self._check(metrics, micro_batches, flags)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self._record(metrics, losses)

    def _load(self) -> tuple[list, float]:
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        micro_batches = [next(self._batches) for _ in range(self.accumulate)]
        return micro_batches, time.perf_counter() - start

    def _backward(self, micro_batches: list) -> Losses:
        """Leaves the gradients in the parameters; returns the averaged losses, still on the device."""
        totals: Losses = {}
        run = self._captured or self._forward_backward
        for index, batch in enumerate(micro_batches):
            seed_step(self.seed, comm.get_rank(), self.iter, index + 1)
            with self._synchronize_gradients(index == len(micro_batches) - 1):
                losses = run(batch)
            for key, value in losses.items():
                totals[key] = totals[key] + value if key in totals else value
        if self._captured is not None:
            average_gradients(self.model.parameters())
        return totals

    def _forward_backward(self, batch: Any) -> Losses:
        """Adds the gradients of a micro-batch's part of the losses, and gives that part."""
        losses = self._forward(batch)
        total = add_up(losses) / self.accumulate
        self.precision.scaler.scale(total).backward()
        shares = {key: value.detach().float() for key, value in losses.items()}
        return shares if self.accumulate == 1 else {key: value / self.accumulate for key, value in shares.items()}

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        try:
            with self.precision.autocast():
                losses = self.model(batch)
        except (NonFiniteError, FloatingPointError) as error:
            raise NonFiniteError(
                describe_non_finite(self.iter, str(error), name_images([batch]), self._last_losses)
            ) from error
        return losses if isinstance(losses, dict) else {"total_loss": losses}

    def _synchronize_gradients(self, wanted: bool) -> contextlib.AbstractContextManager:
        """Only the last backward pass of a step exchanges gradients between processes."""
        if wanted or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _check(self, metrics: StepMetrics, micro_batches: list, flags: list[CostFlags]) -> None:
        flagged = metrics.mean.pop(FLAGGED_COSTS) > 0
        bad = metrics.non_finite()
        if self.precision.tolerates_infinite_gradients:
            bad = [key for key in bad if key != GRADIENT_NORM]
        if not bad and not flagged:
            self._last_losses = metrics.mean
            return
        # Every process has the same gathered metrics, so all of them arrive here and can tell each other their images.
        images = [name for names in comm.all_gather(name_images(micro_batches)) for name in names]
        costs = [words for found in comm.all_gather([w for f in flags for w in f.describe()]) for words in found]
        found = " ".join(costs) or ", ".join(f"{key} = {metrics.mean[key]}" for key in bad)
        raise NonFiniteError(describe_non_finite(self.iter, found, images, self._last_losses))

    def _record(self, metrics: StepMetrics, losses: Iterable[str]) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        total = sum(metrics.mean[name] for name in losses)
        distilled = [metrics.mean[name] for name in losses if name.startswith("loss_distill")]
        if distilled and total:
            storage.put_scalar(DISTILLED_SHARE, sum(distilled) / total)
        storage.put_scalars(**{**metrics.mean, "total_loss": total, "data_time": metrics.data_seconds})


def add_up(losses: dict[str, Tensor]) -> Tensor:
    """The sum of scalar losses, in float32: two operators however many there are, and two in the backward pass."""
    return torch.stack([value.float().reshape(()) for value in losses.values()]).sum()
