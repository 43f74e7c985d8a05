"""A frozen teacher that is a model of Hugging Face transformers, as it is, without import.

Letters: B images, L decoder layers, Q queries, K classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...checkpoint.transformers_folder import open_folder, read_class_names, read_config
from ...data import training_class_names
from ...detr.supervision.matcher import HungarianMatcher
from ...errors import ConfigError
from ...hugging_face.images import prepare_images
from ...hugging_face.kinds import NETWORKS
from ...hugging_face.network import find_preprocessing, load_model
from ...registry import TEACHER_REGISTRY
from ..classes import NAMES_KEY, match_classes, report_pairing
from ..knowledge import Knowledge
from ..side import ReadThrough
from ..students.base import Student, StudentStep
from ..students.transformers import NetworkSide
from .base import CLASS_NAMES, WEIGHTS
from .frozen import HiddenDetector

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"
ASKER = "MODEL.DISTILL.TEACHER.NAME is TransformersDetector"


@TEACHER_REGISTRY.register()
class TransformersDetector(ReadThrough, HiddenDetector):
    """A detector of transformers from a folder named by ``TEACHER.WEIGHTS``; its types stand in hugging_face/kinds.py.

    All give predictions and hidden states of every decoder layer, and maps before and behind their encoder; RT-DETRs,
    D-FINE and DEIMv2 also their queries, and a decoder for queries of others. DETR, Conditional, DAB and Deformable
    DETR can be imported instead (tools/import_checkpoint.py), which gives queries and attention maps.

    Args:
        detector: the model. classes: how its classes relate to the student's. flip_channels: the student reads BGR.
        mean, std: of RGB pixels in the range 0 to 255.
        size: (height, width) to which every image is stretched; None keeps the student's, padded and masked.
    """

    mean: Tensor
    std: Tensor
    detector: Any
    reader: NetworkSide
    weights: str = WEIGHTS
    class_names: tuple[str, ...] = CLASS_NAMES

    @configurable
    def __init__(
        self,
        *,
        mean: list[float],
        std: list[float],
        size: tuple[int, int] | None,
        **arguments: Any,
    ):
        super().__init__(**arguments)
        self.size = size
        network = NETWORKS[self.detector.config.model_type](self.detector)
        self.reader = NetworkSide(network)
        self.matcher = HungarianMatcher(**network.matching_weights)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student | None = None) -> dict[str, Any]:
        if not cfg.MODEL.DISTILL.TEACHER.WEIGHTS:
            raise ConfigError(f"{KEY} is empty; TransformersDetector takes a folder of transformers. Name it.")
        folder = open_folder(cfg.MODEL.DISTILL.TEACHER.WEIGHTS, KEY)
        detector = load_model(folder, KEY, ASKER)
        images = find_preprocessing(folder, KEY)
        labels, given = detector.config.id2label, list(cfg.MODEL.DISTILL.TEACHER.CLASS_NAMES)
        names = given or read_class_names(read_config(folder, KEY), folder, KEY) or None
        source = NAMES_KEY if given else f"id2label of {folder / 'config.json'}"
        student_names = training_class_names(cfg)
        own_count = cfg.MODEL.DETR.NUM_CLASSES if student is None else student.num_classes
        classes = match_classes(student_names, names, own_count, len(labels), source)
        report_pairing(classes, student_names, names)
        return {
            **cls.read_keys(cfg),
            "detector": detector,
            "classes": classes,
            "flip_channels": cfg.INPUT.FORMAT == "BGR",
            "mean": list(images.mean),
            "std": list(images.std),
            "size": images.size,
        }

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images, and at the ground truth where there is any."""
        truth = step.ground_truth
        if truth is not None and self.classes is not None:
            truth = dataclasses.replace(truth, labels=self.classes.teacher_labels(truth.labels))
        images = prepare_images(step.batched_inputs, self.mean, self.std, self.size, self.flip_channels)
        return self.reader.know(self.reader.network.start(images), self.matcher, truth)
