"""Training steps as CUDA graphs: forward, matchings, losses and backward run without Python between the kernels."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..detr.preprocess import read_ground_truth
from ..detr.supervision.cost_flags import CostFlags, collect_cost_flags, report
from ..errors import ConfigError, NonFiniteError
from ..structures.fixed_batch import FixedBatch
from .capture_sizes import choose_size, find_obstacle, read_sizes

WARM_UP = 2  # steps of a size that run as before, in which kernels are compiled and constants made
Losses = dict[str, Tensor]
logger = logging.getLogger(__name__)


class GraphRecorder:
    """CUDA graphs in one pool of memory, on one stream."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Captures what a function does on the device; the result does it, and gives the same tensor each time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            values = run()

        def replay() -> Tensor:
            graph.replay()
            return values

        return replay

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On the stream of the graphs, since the backward pass remembers the stream of the forward."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


@dataclass
class _Entry:
    """What belongs to one padded size and number of images.

    Attributes:
        batch: where its images and objects go. steps: that it ran. replay: the captured step, once there is one.
    """

    batch: FixedBatch
    steps: int = 0
    replay: Callable[[], Losses] | None = None


@dataclass
class CapturedSteps:
    """Runs a step, from the third of each padded size on as a graph.

    All graphs share one pool of memory, and the gradients that they add to.

    Args:
        step: forward and backward pass of a batch, gives the losses without their graphs. model: that it trains.
        sizes: (height, width) that batches are padded to. objects: an image's most. device: of the model.
        recorder: makes the graphs. obstacle: why no step can be captured, in words; empty: nothing is known.
    """

    step: Callable[[list[dict]], Losses]
    model: nn.Module
    sizes: tuple[tuple[int, int], ...]
    objects: int
    device: torch.device
    recorder: GraphRecorder | None
    obstacle: str = ""
    _entries: dict[tuple, _Entry] = field(default_factory=dict)
    _gradients: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    _trained: set[nn.Parameter] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)

    @classmethod
    def from_config(cls, cfg: CfgNode, step: Callable[[list[dict]], Losses], model: nn.Module) -> CapturedSteps:
        """As ``SOLVER.CAPTURE_*`` say; see :func:`capture_sizes.read_sizes` for the errors."""
        device = torch.device(cfg.MODEL.DEVICE)
        recorder = GraphRecorder(device) if device.type == "cuda" else None
        obstacle = find_obstacle(model, device.type)
        sizes = read_sizes(cfg, model)
        return cls(step, model, sizes, cfg.SOLVER.CAPTURE_OBJECTS, device, recorder, obstacle)

    def __call__(self, batch: list[dict]) -> Losses:
        """The losses of a batch; its gradients are added to the parameters'.

        Raises:
            ConfigError: an image is larger than every size.
        """
        obstacle = self.obstacle or self._find_obstacle(batch)
        if not obstacle:
            entry = self._prepare(batch)
            try:
                return self._run(entry)
            except (NonFiniteError, ConfigError):
                raise
            except Exception as error:  # whatever a part, torch or the driver says of what cannot be captured
                if entry.steps > WARM_UP and entry.replay is not None:
                    raise
                words = str(error).strip().partition("\n")[0]
                self.obstacle = obstacle = f"it could not be captured ({type(error).__name__}: {words})"
        if obstacle not in self._said:
            self._said.add(obstacle)
            logger.warning("SOLVER.CAPTURE: a step runs as without it, since %s.", obstacle)
        return self.step(batch)

    def zero_gradients(self) -> None:
        """Puts the gradients, which graphs know by their place, to zero; None before the first graph."""
        if not self._gradients:
            for parameter in self.model.parameters():
                parameter.grad = None
            return
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        torch._foreach_zero_(list(self._gradients.values()))

    def _find_obstacle(self, batch: list[dict]) -> str:
        """Why this batch's step runs as before; empty where nothing speaks against a graph."""
        if any("teacher_image" in entry for entry in batch):
            return "the teacher sees other images than the student"
        if any("instances" not in entry for entry in batch):
            return "an image has no labels"
        if max(len(entry["instances"]) for entry in batch) > self.objects:
            return f"an image has more than SOLVER.CAPTURE_OBJECTS {self.objects} objects"
        return ""

    def _prepare(self, batch: list[dict]) -> _Entry:
        """The entry of a batch's size, with the batch in it."""
        images = [entry["image"] for entry in batch]
        size = choose_size([(image.shape[-2], image.shape[-1]) for image in images], self.sizes)
        key = (size, len(images), images[0].dtype)
        if key not in self._entries:
            fixed = FixedBatch(len(images), size, self.objects, images[0].dtype, self.device)
            self._entries[key] = _Entry(fixed)
        self._entries[key].batch.fill(images, read_ground_truth(batch, "cpu"))
        return self._entries[key]

    def _run(self, entry: _Entry) -> Losses:
        entry.steps += 1
        if entry.steps <= WARM_UP:
            assert self.recorder is not None
            with self.recorder.beside():
                losses = self.step(entry.batch)
            self._trained |= {parameter for parameter in self.model.parameters() if parameter.grad is not None}
            return losses
        if entry.replay is None:
            entry.replay = self._capture(entry.batch)
        return entry.replay()

    def _capture(self, batch: FixedBatch) -> Callable[[], Losses]:
        """A captured step; nothing of it runs yet."""
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._gradients[parameter] = parameter.grad
        assert self.recorder is not None
        names: list[str] = []

        def run() -> Tensor:
            losses = self.step(batch)
            names[:] = losses
            return torch.stack(list(losses.values()))

        with collect_cost_flags() as flags:
            replay = self.recorder.record(run)

        def step() -> Losses:
            values = replay().clone()
            for found in flags:
                report(CostFlags(found.name, found.values.clone()))
            return dict(zip(names, values.unbind(), strict=True))

        return step
