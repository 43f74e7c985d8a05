"""A trained detector that is asked for its predictions, of this package or of transformers.

Letters: L decoder layers, B images, Q queries, K class scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.class_names import stored_class_names
from ..checkpoint.locate import local_file
from ..checkpoint.strict import load_strict
from ..config.detecting import SEEN, detecting_keys
from ..data import training_class_names
from ..data.check_cache import hash_file
from ..detr.preprocess import read_ground_truth
from ..distill.classes import same_classes
from ..distill.knowledge import Knowledge
from ..distill.students.base import StudentStep, check_student, student_of
from ..distill.teachers.inference_form import prepare_for_inference
from ..distill.teachers.transformers import TransformersDetector
from ..engine.model import build_named_model
from ..errors import ConfigError
from ..hugging_face.network import find_preprocessing, load_model
from ..structures import PREDICTIONS

WEIGHTS = "--weights"


@dataclass(frozen=True)
class Predictor:
    """A detector with its weights.

    Attributes:
        know: detectron2 dicts to what the detector knows of them, its output at least.
        class_names: of its logits, in order. weights_hash: SHA-256 of its weights. settings: key -> value of what
            decides, beside the weights, what it says of an image.
    """

    know: Callable[[list[dict]], Knowledge]
    class_names: tuple[str, ...]
    weights_hash: str
    settings: Mapping[str, Any]


def load_predictor(cfg: CfgNode, weights: str) -> Predictor:
    """The detector of a configuration, or of a folder of transformers.

    Raises:
        ConfigError, CheckpointError: weights that cannot be read or do not fit; a detector without predictions; class
            names that nothing tells.
    """
    return _from_transformers(cfg, Path(weights)) if Path(weights).is_dir() else _from_configuration(cfg, weights)


def _from_configuration(cfg: CfgNode, weights: str) -> Predictor:
    detector = build_named_model(cfg).eval().requires_grad_(False)
    load_strict(detector, weights, WEIGHTS)
    check_student(type(detector))
    student = student_of(detector)
    if student.backbone is not None:
        prepare_for_inference(student.backbone)
    if PREDICTIONS not in student.gives:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {student.name} gives no predictions to write. Choose a detector that does."
        )
    names = find_class_names(cfg, weights, student.num_classes)
    if names is None:
        raise _unknown_classes(cfg, weights, "no", student.num_classes)
    classes, device = same_classes(student.num_classes), next(detector.parameters()).device

    def know(batch: list[dict]) -> Knowledge:
        truth = read_ground_truth(batch, device, needs_labels=False)
        return student.know(StudentStep(batch, ground_truth=truth), classes, frozenset({PREDICTIONS}))

    return Predictor(know, names, hash_file(local_file(weights, WEIGHTS)), detecting_keys(cfg))


def find_class_names(cfg: CfgNode, weights: str, count: int) -> tuple[str, ...] | None:
    """Names of a detector's ``count`` classes, by its checkpoint or its training set; None where neither tells them.

    Raises:
        ConfigError: they are of another number.
    """
    names = stored_class_names(weights) or training_class_names(cfg)
    if names is not None and len(names) != count:
        raise _unknown_classes(cfg, weights, str(len(names)), count)
    return names


def _unknown_classes(cfg: CfgNode, weights: str, told: str, count: int) -> ConfigError:
    return ConfigError(
        f"{weights} and DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)} tell {told} class names, and the detector has "
        f"{count}. Name the set that it was trained on."
    )


def _from_transformers(cfg: CfgNode, folder: Path) -> Predictor:
    detector = load_model(folder, WEIGHTS, f"{WEIGHTS} names a folder of transformers")
    images = find_preprocessing(folder, WEIGHTS)
    labels = detector.config.id2label
    teacher = TransformersDetector(
        detector=detector,
        classes=None,
        flip_channels=cfg.INPUT.FORMAT == "BGR",
        mean=list(images.mean),
        std=list(images.std),
        size=images.size,
    ).to(cfg.MODEL.DEVICE)

    def know(batch: list[dict]) -> Knowledge:
        return teacher(StudentStep(batch), frozenset())

    names = tuple(labels[index] for index in sorted(labels))
    return Predictor(know, names, _hash_weights(detector), detecting_keys(cfg, SEEN))


def _hash_weights(detector: nn.Module) -> str:
    """Of a folder of transformers, whose weights may lie in several files."""
    digest = hashlib.sha256()
    for name, value in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
