"""A trained detector that stays as it is."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.modeling import build_model
from torch import nn

from ...checkpoint.strict import load_strict
from ...data import training_class_names
from ...detr import DetrDetector
from ...errors import ConfigError
from ...registry import TEACHER_REGISTRY
from ..classes import NAMES_KEY, ClassMap, match_classes
from ..knowledge import Knowledge
from ..students.base import StudentStep, feature_channels, start_student
from ..students.classes import count_classes
from .configuration import find_weights, load_teacher_config
from .inference_form import prepare_for_inference
from .reading import read_knowledge


@TEACHER_REGISTRY.register()
class FrozenDetector(nn.Module):
    """A trained detector that stays as it is.

    It is no part of ``state_dict``, ``parameters`` or DDP, follows ``.to()``, and never leaves eval mode.

    Args:
        detector: with its weights loaded. classes: how its class list relates to the student's; None for one without
            predictions.
        flip_channels: the student's images have the other channel order (RGB for BGR) than the teacher expects.
    """

    @configurable
    def __init__(self, *, detector: nn.Module, classes: ClassMap | None, flip_channels: bool = False):
        super().__init__()
        detector.eval().requires_grad_(False)
        # Outside the module tree: a list is not searched for parameters.
        self._hidden = [detector]
        self.classes = classes
        self.flip_channels = flip_channels

    @classmethod
    def from_config(cls, cfg, student=None):
        node = cfg.MODEL.DISTILL.TEACHER
        teacher_cfg = load_teacher_config(cfg)
        # The student's random numbers must not depend on whether a teacher is built.
        with torch.random.fork_rng():
            detector = build_model(teacher_cfg)
        if start_student.dispatch(type(detector)) is start_student.dispatch(object):
            known = sorted(found.__name__ for found in start_student.registry if found is not object)
            raise ConfigError(
                f"MODEL.DISTILL.TEACHER.CONFIG_FILE {node.CONFIG_FILE} describes a {type(detector).__name__}; "
                f"FrozenDetector takes one of {', '.join(known)} and their subclasses. Set MODEL.META_ARCHITECTURE of "
                "that file."
            )
        load_strict(detector, find_weights(cfg))
        prepare_for_inference(detector.backbone)
        classes = None
        if isinstance(detector, DetrDetector) or cfg.MODEL.DISTILL.MATCHERS:
            teacher_names = list(node.CLASS_NAMES) or training_class_names(teacher_cfg)
            num_student = cfg.MODEL.DETR.NUM_CLASSES if student is None else count_classes(student)
            source = NAMES_KEY if node.CLASS_NAMES else "its training set"
            own_names, num_teacher = training_class_names(cfg), count_classes(detector)
            classes = match_classes(own_names, teacher_names, num_student, num_teacher, source)
        flip_channels = teacher_cfg.INPUT.FORMAT != cfg.INPUT.FORMAT
        return {"detector": detector, "classes": classes, "flip_channels": flip_channels}

    @property
    def detector(self) -> nn.Module:
        return self._hidden[0]

    @property
    def feature_channels(self) -> dict[str, int]:
        """Channels of the maps in ``Knowledge.features``, by name."""
        return feature_channels(self.detector)

    def train(self, mode: bool = True) -> FrozenDetector:
        """The detector stays in eval mode whatever ``mode`` says."""
        super().train(mode)
        self.detector.eval()
        return self

    def _apply(self, fn, recurse: bool = True):
        self.detector._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images, and a DETR at the ground truth too.

        Args:
            step: of the student; its images are read, its features are not. capture: attention maps to keep.
        """
        batched_inputs = step.batched_inputs
        if self.flip_channels:
            batched_inputs = [{**x, "image": x["image"].flip(0)} for x in batched_inputs]
        return read_knowledge(self.detector, batched_inputs, self.classes, capture)
