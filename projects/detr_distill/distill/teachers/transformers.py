"""A frozen teacher that is a model of Hugging Face transformers, as it is, without import.

Letters: B images, L decoder layers, Q queries, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...checkpoint.contents import check_finite
from ...checkpoint.matching import Fit
from ...checkpoint.transformers_folder import open_folder, read_class_names, read_config, read_preprocessing
from ...data import training_class_names
from ...detr.preprocess import pad_images
from ...errors import CheckpointError, ConfigError
from ...registry import TEACHER_REGISTRY
from ...structures import PREDICTIONS, DecoderOutput
from ...structures.transfer import copy_to
from ..classes import NAMES_KEY, match_classes, report_pairing
from ..knowledge import Knowledge
from ..students.base import Student, StudentStep
from .base import CLASS_NAMES, WEIGHTS
from .frozen import HiddenDetector

KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"


# Model types, and how their logits become probabilities.
ACTIVATIONS = {
    "rt_detr": "sigmoid",
    "rt_detr_v2": "sigmoid",
    "d_fine": "sigmoid",
    "deformable_detr": "sigmoid",
    "conditional_detr": "sigmoid",
    "dab-detr": "sigmoid",
    "detr": "softmax",
}


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
        detector = load_model(folder)
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
            "activation": ACTIVATIONS[detector.config.model_type],
            **find_preprocessing(folder),
        }

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({PREDICTIONS})

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images alone."""
        with _every_layer(self.detector):
            found = self.detector(**self._preprocess(step.batched_inputs))
        logits, boxes = found.logits.unsqueeze(0), found.pred_boxes.unsqueeze(0)
        if found.get("intermediate_logits") is not None:
            # D-FINE puts a prediction of no layer first.
            layers = slice(int(_is_dfine(self.detector)), None)
            logits = found.intermediate_logits.transpose(0, 1)[layers]
            boxes = found.intermediate_reference_points.transpose(0, 1)[layers]
        hidden = logits.new_zeros(*logits.shape[:3], 0)
        return Knowledge(output=DecoderOutput(logits.float(), boxes.float(), hidden, self.activation))

    def _preprocess(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        device = self.mean.device
        images = [copy_to(x["image"], device).float() for x in batched_inputs]
        if self.flip_channels:
            images = [image.flip(0) for image in images]
        if self.size is not None:
            stretched = [F.interpolate(x[None], self.size, mode="bilinear", antialias=True)[0] for x in images]
            return {"pixel_values": (torch.stack(stretched) - self.mean) / self.std}
        batch = pad_images(images, self.mean, self.std, 1)
        return {"pixel_values": batch.tensor} | ({} if batch.mask is None else {"pixel_mask": (~batch.mask).long()})


def load_model(folder: Path) -> Any:
    """The detector of a folder, with every one of its weights; nothing is downloaded.

    Raises:
        ConfigError: transformers is not installed, or a model of another type.
        CheckpointError: the weights cannot be read, are not finite, or do not fit the model of config.json.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "MODEL.DISTILL.TEACHER.NAME is TransformersDetector, which needs transformers: pip install transformers. "
            "DETR, Conditional, DAB and Deformable DETR can be imported without it: tools/import_checkpoint.py."
        ) from error
    found = str(read_config(folder, KEY).get("model_type"))
    if found not in ACTIVATIONS:
        raise ConfigError(f"{KEY} {folder} holds a model of type {found!r}. Known: {', '.join(ACTIVATIONS)}.")
    try:
        model, report = transformers.AutoModelForObjectDetection.from_pretrained(
            str(folder),
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            # Refused below, where they can be named.
            ignore_mismatched_sizes=True,
        )
    # Damaged or foreign folders raise whatever transformers stumbles over first.
    except Exception as error:
        raise CheckpointError(f"{KEY} {folder} cannot be loaded: {str(error)[:300]}") from error
    misshaped = {name: (tuple(found), tuple(wanted)) for name, found, wanted in sorted(report["mismatched_keys"])}
    fit = Fit(matched={}, missing=sorted(report["missing_keys"]), unexpected=[], misshaped=misshaped)
    if not fit.is_complete:
        raise CheckpointError(
            f"{KEY} {folder}: the weights do not fit the model that config.json describes:\n{fit.problems()}\n"
            "Use the config.json that belongs to them; its id2label gives the number of classes."
        )
    check_finite(model.state_dict(), f"{KEY} {folder}")
    return model


def find_preprocessing(folder: Path) -> dict[str, Any]:
    """``mean``, ``std`` and ``size`` of images from a folder's ``preprocessor_config.json``.

    Raises:
        ConfigError: it is not there; a guess would spoil the teacher silently.
        CheckpointError: it cannot be read, or tells what cannot be.
    """
    images = read_preprocessing(folder, KEY)
    if images is None:
        raise ConfigError(f"{KEY} {folder} lacks preprocessor_config.json, which says how its images are normalised.")
    return {"mean": list(images.mean), "std": list(images.std), "size": images.size}


@contextlib.contextmanager
def _every_layer(detector: Any) -> Iterator[None]:
    """D-FINE gives its inner layers' predictions in training alone; what its decoder contains stays in eval mode."""
    if not _is_dfine(detector):
        yield
        return
    decoder = detector.model.decoder
    decoder.training = True
    try:
        yield
    finally:
        decoder.training = False


def _is_dfine(detector: Any) -> bool:
    return detector.config.model_type == "d_fine"
