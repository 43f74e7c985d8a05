"""A detector in two halves with a criterion: one step of training, and detection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import GroundTruth
from ..structures.fixed_batch import share_object_count
from .detections import read_detections
from .preprocess import read_ground_truth
from .supervision.criterion import SetCriterion, Supervised
from .supervision.matchings import Matchings


class TwoHalvesDetector(nn.Module):
    """What a batch goes through; a subclass says how its network is run.

    Attributes:
        criterion: the detection loss. training_groups: by name, what makes query groups of the training step.
        detections_per_image: most boxes returned for an image.
    """

    criterion: SetCriterion
    training_groups: nn.ModuleDict
    detections_per_image: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where images and objects go."""

    @property
    def stretches(self) -> bool:
        """All images are brought to one size, so that none of a batch is padded."""
        return False

    @abstractmethod
    def start(self, batched_inputs: list[dict]) -> Any:
        """Up to the maps that the rest of the network reads."""

    @abstractmethod
    def finish(self, started: Any, ground_truth: GroundTruth | None = None) -> Any:
        """From there to the ``outputs`` of all query groups by name; the ground truth is that of a training step."""

    @abstractmethod
    def supervise(self, finished: Any, ground_truth: GroundTruth, matchings: Matchings) -> list[Supervised]:
        """What the criterion compares with objects, each entry's matching added to the ledger where it has one."""

    def losses(self, supervised: list[Supervised]) -> dict[str, Tensor]:
        """The detection losses of what :meth:`supervise` named, once the ledger is solved."""
        return self.criterion.losses(supervised)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2 dicts with ``image`` (3, height, width) and, in training, ``instances``.

        Returns:
            ``loss_{class,box,giou}[_group][_layer]`` scalars to sum, of the detector's own queries and of the groups
            that the class names; or a list of ``{"instances": Instances}`` in the pixels of the original images.
        """
        if not self.training:
            return self.detect(batched_inputs)
        # Before the network runs: a copy to the device waits for the work that was queued ahead of it.
        ground_truth = share_object_count(read_ground_truth(batched_inputs, self.device))
        finished = self.finish(self.start(batched_inputs), ground_truth)
        matchings = Matchings(self.criterion.matcher.solver)
        supervised = self.supervise(finished, ground_truth, matchings)
        matchings.solve()
        return self.losses(supervised)

    def detect(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections, as :meth:`forward` gives them outside of training."""
        sizes = [tuple(entry["image"].shape[-2:]) for entry in batched_inputs]
        if len(set(sizes)) > 1 and not self.stretches:
            # Convolutions carry padding over an image's border: one by one, no result depends on its neighbours.
            return [self.detect([entry])[0] for entry in batched_inputs]
        output = self.finish(self.start(batched_inputs)).outputs["own"]
        return read_detections(output, sizes, batched_inputs, self.detections_per_image)
