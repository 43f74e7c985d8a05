"""A teacher that is a file: predictions that a detector made beforehand.

Letters: L layers, B images, Q queries, K class scores.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable

from ...data import training_class_names
from ...data.predictions.results_file import ResultsFile
from ...data.predictions.store import PredictionStore, StoredPredictions
from ...data.predictions.training_images import TrainingImages, training_images
from ...detr.boxes import to_centres, to_corners
from ...detr.supervision.matcher import HungarianMatcher
from ...errors import ConfigError, DataError
from ...registry import TEACHER_REGISTRY
from ...structures import PREDICTIONS, DecoderOutput
from ...structures.transfer import copy_to
from ..classes import NAMES_KEY, ClassMap, match_classes
from ..knowledge import Knowledge
from ..side import ASSIGNMENT
from ..students.base import Student, StudentStep
from .base import CLASS_NAMES, WEIGHTS, Teacher

logger = logging.getLogger(__name__)

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"


@TEACHER_REGISTRY.register()
class PredictionsFile(Teacher):
    """Logits and boxes from a file named by ``TEACHER.WEIGHTS``: any detector teaches, at no cost in the step.

    The file is a folder of ``tools/predict.py`` (every layer and query), or a COCO results JSON (detections with
    scores). Boxes follow the augmentation of each image as the ground truth's do: they are moved, and cut to a crop.
    Attention, queries and maps are not in a file; the assignment to objects is found here. The form is ours [R].

    Args:
        predictions: by image id. classes: how their classes relate to the student's. activation: of their logits.
        matcher: gives the cost of the predictions with the objects.
    """

    weights: str = WEIGHTS
    class_names: tuple[str, ...] = CLASS_NAMES

    @configurable
    def __init__(
        self,
        *,
        predictions: PredictionStore | ResultsFile,
        classes: ClassMap,
        activation: str,
        layers: int,
        matcher: HungarianMatcher,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.predictions, self.classes, self.activation = predictions, classes, activation
        self._layers, self.matcher = layers, matcher

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        path = cfg.MODEL.DISTILL.TEACHER.WEIGHTS
        if not path:
            raise ConfigError(f"{KEY} is empty; PredictionsFile takes what tools/predict.py wrote. Name it.")
        if not Path(path).exists():
            raise ConfigError(f"{KEY} {path}: there is no such file or folder. Write it with tools/predict.py.")

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        node = cfg.MODEL.DISTILL.TEACHER
        cls.check_files(cfg)
        if cfg.INPUT.MAPPER != "detr":
            raise ConfigError(
                f"INPUT.MAPPER is '{cfg.INPUT.MAPPER}', which does not tell how it moves an image: the boxes of "
                "PredictionsFile could not follow. Set INPUT.MAPPER detr."
            )
        images = training_images(cfg)
        if Path(node.WEIGHTS).suffix == ".json" and not Path(node.WEIGHTS).is_dir():
            return {**cls.read_keys(cfg), **_from_results(cfg, images, student)}
        return {**cls.read_keys(cfg), **_from_store(cfg, images, student)}

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({PREDICTIONS, ASSIGNMENT})

    @property
    def num_layers(self) -> int:
        return self._layers

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks the step's images up.

        Raises:
            DataError: an image without ``image_id`` or ``placement``, which ``DetrDatasetMapper`` gives.
        """
        absent = [name for name in ("image_id", "placement") if any(name not in x for x in step.batched_inputs)]
        if absent:
            raise DataError(
                f"{KEY}: an image of the batch has no {' and no '.join(absent)}, by which PredictionsFile finds its "
                "predictions. Give every entry both, as detr_distill.data.DetrDatasetMapper does."
            )
        found = self.predictions.read([entry["image_id"] for entry in step.batched_inputs])
        sizes = [tuple(entry["image"].shape[-2:]) for entry in step.batched_inputs]
        found = move(found, [entry["placement"] for entry in step.batched_inputs], sizes)
        truth = step.ground_truth
        assert truth is not None and self.classes is not None
        device = truth.labels.device
        logits, boxes = (copy_to(values, device) for values in (found.logits, found.boxes))
        output = DecoderOutput(logits, boxes, logits.new_zeros(*logits.shape[:3], 0), self.activation)
        truth = dataclasses.replace(truth, labels=self.classes.teacher_labels(truth.labels))
        full = all(count == logits.shape[2] for count in found.counts)
        return Knowledge(
            output=output,
            ground_truth=truth,
            label_cost=self.matcher(output, truth),
            counts=None if full else found.counts,
        )


def move(
    found: StoredPredictions, placements: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]
) -> StoredPredictions:
    """Predictions of images as they are in their files, moved to where augmentation has put them.

    Args:
        placements: of each image, (x, y) of its first and of its opposite corner in the augmented image, pixels.
        sizes: (height, width) of the augmented images.

    Returns:
        Boxes as shares of the augmented image, cut to it. Queries of whose last box nothing is left come last, and
        ``counts`` leaves them out.
    """
    corners = torch.tensor(placements, dtype=torch.float64)
    extent = torch.tensor([(width, height) for height, width in sizes], dtype=torch.float64)
    first, last = (corners[:, :2] / extent).float(), (corners[:, 2:] / extent).float()
    scale, offset = (last - first)[None, :, None], first[None, :, None]
    boxes = torch.cat([found.boxes[..., :2] * scale + offset, found.boxes[..., 2:] * scale.abs()], dim=-1)
    whole = (torch.minimum(first, last) >= 0).all() and (torch.maximum(first, last) <= 1).all()
    if whole:
        return StoredPredictions(found.logits, boxes, found.counts)
    boxes = to_centres(to_corners(boxes).clamp(0, 1))
    kept = (boxes[-1, :, :, 2:] > 0).all(-1)  # (B, Q)
    kept &= torch.arange(kept.shape[1])[None] < torch.tensor(found.counts)[:, None]
    order = kept.int().argsort(dim=1, descending=True, stable=True)[None, :, :, None]
    logits = found.logits.gather(2, order.expand_as(found.logits))
    boxes = boxes.gather(2, order.expand_as(boxes))
    return StoredPredictions(logits, boxes, kept.sum(1).tolist())


def _from_store(cfg: CfgNode, images: TrainingImages, student: Student) -> dict[str, Any]:
    store = PredictionStore(cfg.MODEL.DISTILL.TEACHER.WEIGHTS)
    images.check_all_in(store.images, f"{KEY} {store.folder}")
    described = store.description
    return {
        "predictions": store,
        "classes": _match(cfg, described.class_names, student, str(store.folder)),
        "activation": described.activation,
        "layers": described.layers,
        "matcher": HungarianMatcher(cfg),
    }


def _from_results(cfg: CfgNode, images: TrainingImages, student: Student) -> dict[str, Any]:
    file = ResultsFile(cfg.MODEL.DISTILL.TEACHER.WEIGHTS, images.categories, images.sizes)
    if not file.image_ids:
        raise DataError(f"{KEY} {file.path} holds no detection. Name a file with results of {images.source}.")
    absent = len(images.images) - len(file.image_ids)
    if absent:
        # An image without detections has no entry in COCO's format, so it cannot be told from one that was left out.
        logger.warning(
            "%s %s has no detection in %d of the %d images of %s, which teach nothing.",
            *(KEY, file.path, absent, len(images.images), images.source),
        )
    return {
        "predictions": file,
        # Its categories are the training set's.
        "classes": _match(cfg, training_class_names(cfg) or (), student, str(file.path)),
        "activation": file.activation,
        "layers": file.layers,
        "matcher": HungarianMatcher(cfg),
    }


def _match(cfg: CfgNode, class_names: Sequence[str], student: Student, source: str) -> ClassMap:
    """The classes of a file of predictions, or ``TEACHER.CLASS_NAMES`` in their place, and the student's."""
    given = list(cfg.MODEL.DISTILL.TEACHER.CLASS_NAMES)
    names, count = given or list(class_names), len(class_names)
    return match_classes(training_class_names(cfg), names, student.num_classes, count, NAMES_KEY if given else source)
