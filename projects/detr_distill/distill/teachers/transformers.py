"""A frozen teacher that is a model of Hugging Face transformers, as it is, without import.

Letters: B images, L decoder layers, Q queries, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...checkpoint.transformers_folder import open_folder
from ...data import training_class_names
from ...errors import ConfigError
from ...hugging_face.images import prepare_images
from ...hugging_face.network import ACTIVATIONS, find_preprocessing, load_model
from ...hugging_face.rt_detr import every_layer, has_distributions
from ...registry import TEACHER_REGISTRY
from ...structures import PREDICTIONS, DecoderOutput
from ..classes import NAMES_KEY, known_names, match_classes, report_pairing
from ..knowledge import Knowledge
from ..students.base import Student, StudentStep
from .base import CLASS_NAMES, WEIGHTS
from .frozen import HiddenDetector

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"
ASKER = "MODEL.DISTILL.TEACHER.NAME is TransformersDetector"


@TEACHER_REGISTRY.register()
class TransformersDetector(HiddenDetector):
    """RT-DETR, RT-DETRv2, D-FINE or a DETR of transformers, from a folder named by ``TEACHER.WEIGHTS``.

    RT-DETRs and D-FINE give logits and boxes of every decoder layer; the others give those of their last, and are
    better imported (tools/import_checkpoint.py), which also gives attention maps and queries. Here neither is known:
    FixedMatcher and AttentionLoss are refused.

    Args:
        detector: the model. classes: how its classes relate to the student's. flip_channels: the student reads BGR.
        activation: "sigmoid" or "softmax". mean, std: of RGB pixels in the range 0 to 255.
        size: (height, width) to which every image is stretched; None keeps the student's, padded and masked.
    """

    mean: Tensor
    std: Tensor
    detector: Any
    weights: str = WEIGHTS
    class_names: tuple[str, ...] = CLASS_NAMES

    @configurable
    def __init__(
        self,
        *,
        activation: str,
        mean: list[float],
        std: list[float],
        size: tuple[int, int] | None,
        **arguments: Any,
    ):
        super().__init__(**arguments)
        self.activation, self.size = activation, size
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
        names = given or known_names([labels[index] for index in sorted(labels)])
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
            "activation": ACTIVATIONS[detector.config.model_type],
            "mean": list(images.mean),
            "std": list(images.std),
            "size": images.size,
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({PREDICTIONS})

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images alone."""
        with every_layer(self.detector):
            found = self.detector(**self._preprocess(step.batched_inputs))
        logits, boxes = found.logits.unsqueeze(0), found.pred_boxes.unsqueeze(0)
        if found.get("intermediate_logits") is not None:
            # D-FINE puts a prediction of no layer first.
            layers = slice(int(has_distributions(self.detector)), None)
            logits = found.intermediate_logits.transpose(0, 1)[layers]
            boxes = found.intermediate_reference_points.transpose(0, 1)[layers]
        hidden = logits.new_zeros(*logits.shape[:3], 0)
        return Knowledge(output=DecoderOutput(logits.float(), boxes.float(), hidden, self.activation))

    def _preprocess(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        batch = prepare_images(batched_inputs, self.mean, self.std, self.size, self.flip_channels)
        return {"pixel_values": batch.tensor} | ({} if batch.mask is None else {"pixel_mask": (~batch.mask).long()})
