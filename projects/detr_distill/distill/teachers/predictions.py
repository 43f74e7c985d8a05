"""A teacher that is a file: predictions that a detector made beforehand.

Letters: L layers, B images, Q queries, K class scores.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable

from ...config.files import complete_path
from ...data import training_class_names
from ...data.predictions.maps import MIRRORED, place_all
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
from ..side import ASSIGNMENT, MAPS
from ..students.base import Student, StudentStep
from .base import CLASS_NAMES, WEIGHTS, Teacher

logger = logging.getLogger(__name__)

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"


@TEACHER_REGISTRY.register()
class PredictionsFile(Teacher):
    """Logits and boxes from a file named by ``TEACHER.WEIGHTS``: any detector teaches, at no cost in the step.

    The file is a folder of ``tools/predict.py`` (every layer and query, and with ``--maps`` feature maps), or a COCO
    results JSON (detections with scores). Boxes follow the augmentation of each image as the ground truth's do: they
    are moved, and cut to a crop; so do maps. Attention and queries are not in a file; the assignment to objects is
    found here. The form is ours [R].

    Args:
        find: the predictions of entries of a batch, of which it reads ``image_id`` and ``file_name``.
        classes: how their classes relate to the student's. activation: of their logits.
        matcher: gives the cost of the predictions with the objects. maps: channels of the maps in the file, by name.
    """

    weights: str = WEIGHTS
    class_names: tuple[str, ...] = CLASS_NAMES

    @configurable
    def __init__(
        self,
        *,
        find: Callable[[Sequence[dict]], StoredPredictions],
        classes: ClassMap,
        activation: str,
        layers: int,
        matcher: HungarianMatcher,
        maps: Mapping[str, int] | None = None,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.given_channels = {name: width for name, width in (maps or {}).items() if not name.endswith(MIRRORED)}
        self.find, self.classes, self.activation = find, classes, activation
        self._layers, self.matcher = layers, matcher

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        _checked[_source(cfg)] = _read(cfg)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student) -> dict[str, Any]:
        predictions = _checked.pop(_source(cfg), None) or _read(cfg)
        given = list(cfg.MODEL.DISTILL.TEACHER.CLASS_NAMES)
        names, count = given or list(predictions.class_names), len(predictions.class_names)
        source = NAMES_KEY if given else cfg.MODEL.DISTILL.TEACHER.WEIGHTS
        classes = match_classes(training_class_names(cfg), names, student.num_classes, count, source)
        return {
            **cls.read_keys(cfg),
            "find": predictions.find,
            "classes": classes,
            "activation": predictions.activation,
            "layers": predictions.layers,
            "matcher": HungarianMatcher(cfg),
            "maps": predictions.maps,
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({PREDICTIONS, ASSIGNMENT, *([MAPS] if self.given_channels else [])})

    @property
    def num_layers(self) -> int:
        return self._layers

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks the step's images up.

        Raises:
            DataError: an image without ``image_id``, ``file_name`` or ``placement``, which ``DetrDatasetMapper`` gives.
        """
        absent = [
            name for name in ("image_id", "file_name", "placement") if any(name not in x for x in step.batched_inputs)
        ]
        if absent:
            raise DataError(
                f"{KEY}: an image of the batch has no {' and no '.join(absent)}, by which PredictionsFile finds its "
                "predictions. Give every entry all three, as detr_distill.data.DetrDatasetMapper does."
            )
        found = self.find(step.batched_inputs)
        sizes = [tuple(entry["image"].shape[-2:]) for entry in step.batched_inputs]
        placements = [entry["placement"] for entry in step.batched_inputs]
        maps, found = found.maps, move(found, placements, sizes)
        truth = step.ground_truth
        assert truth is not None and self.classes is not None
        device = truth.labels.device
        logits, boxes = (copy_to(values, device) for values in (found.logits, found.boxes))
        output = DecoderOutput(logits, boxes, logits.new_zeros(*logits.shape[:3], 0), self.activation)
        truth = dataclasses.replace(truth, labels=self.classes.teacher_labels(truth.labels))
        full = all(count == logits.shape[2] for count in found.counts)
        height, width = (max(pixels) for pixels in zip(step.image_size, *sizes, strict=True))
        return Knowledge(
            features=place_all(maps, placements, (height, width), device),
            output=output,
            ground_truth=truth,
            label_cost=functools.cache(lambda: self.matcher(output, truth)),
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


class _Predictions(NamedTuple):
    """A file of predictions that has all images of a run; ``class_names``: of its logits."""

    find: Callable[[Sequence[dict]], StoredPredictions]
    class_names: tuple[str, ...]
    activation: str
    layers: int
    maps: Mapping[str, int]


# What the check before a run has read, until the run builds its teacher: comparing the images takes up to 20 seconds.
_checked: dict[str, _Predictions] = {}


def _source(cfg: CfgNode) -> str:
    """What the file of a configuration is read with."""
    return f"{cfg.MODEL.DISTILL.TEACHER.WEIGHTS} {cfg.INPUT.MAPPER} {cfg.DATASETS} {cfg.DATALOADER}"


def _read(cfg: CfgNode) -> _Predictions:
    """Reads ``TEACHER.WEIGHTS`` and looks for the run's images in it.

    Raises:
        ConfigError: it is not named or not there, or boxes could not follow. DataError: it is damaged, of other images,
            or has some not.
    """
    weights = complete_path(cfg.MODEL.DISTILL.TEACHER.WEIGHTS)
    if not weights:
        raise ConfigError(f"{KEY} is empty; PredictionsFile takes what tools/predict.py wrote. Name it.")
    if not Path(weights).exists():
        raise ConfigError(f"{KEY} {weights}: there is no such file or folder. Write it with tools/predict.py.")
    if cfg.INPUT.MAPPER != "detr":
        raise ConfigError(
            f"INPUT.MAPPER is '{cfg.INPUT.MAPPER}', which does not tell how it moves an image: the boxes of "
            "PredictionsFile could not follow. Set INPUT.MAPPER detr."
        )
    images, path = training_images(cfg), Path(weights)
    if path.suffix == ".json" and not path.is_dir():
        return _read_results(cfg, images, path)
    store = PredictionStore(path)
    rows = images.rows_in(store, f"{KEY} {store.folder}")

    def find(entries: Sequence[dict]) -> StoredPredictions:
        keys = [(entry["image_id"], entry["file_name"]) for entry in entries]
        unknown = [key for key in keys if key not in rows]
        if unknown:
            raise DataError(
                f"{KEY} {store.folder}: {unknown[0][1]} of the id {unknown[0][0]} is in the batch and no image of "
                f"{images.source}. Name its set in DATASETS.TRAIN or DATASETS.UNLABELED."
            )
        return store.read_rows([rows[key] for key in keys])

    described = store.description
    return _Predictions(find, described.class_names, described.activation, described.layers, described.maps)


def _read_results(cfg: CfgNode, images: TrainingImages, path: Path) -> _Predictions:
    images.check_ids(f"{KEY} {path}")
    file = ResultsFile(path, images.categories, images.sizes)
    if not file.image_ids:
        raise DataError(f"{KEY} {file.path} holds no detection. Name a file with results of {images.source}.")
    absent = len(images.sizes) - len(file.image_ids)
    if absent:
        # An image without detections has no entry in COCO's format, so it cannot be told from one that was left out.
        logger.warning(
            "%s %s has no detection in %d of the %d images of %s, which teach nothing.",
            *(KEY, file.path, absent, len(images.sizes), images.source),
        )

    def find(entries: Sequence[dict]) -> StoredPredictions:
        return file.read([entry["image_id"] for entry in entries])

    # Its categories are the training set's.
    return _Predictions(find, training_class_names(cfg) or (), file.activation, file.layers, {})
