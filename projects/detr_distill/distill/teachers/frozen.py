"""A trained detector that stays as it is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_model
from torch import nn

from ...checkpoint.strict import load_strict
from ...config.keys import key
from ...config.ranges import Words
from ...data import training_class_names
from ...errors import ConfigError
from ...registry import TEACHER_REGISTRY
from ...structures import DecoderOutput, QueryGroup
from ..classes import ClassMap, match_classes, report_pairing
from ..knowledge import Knowledge
from ..side import ONE_TO_ONE, ReadThrough
from ..students.base import Student, StudentStep, student_of
from .base import CLASS_NAMES, SECTION, WEIGHTS, Teacher, compares_classes
from .configuration import check_teacher, find_weights, load_teacher_config, teacher_class_names
from .inference_form import HALVES, PRECISIONS, Projection, computes_in, keep_in, prepare_for_inference


class HiddenDetector(Teacher):
    """A detector in eval mode that is no part of ``state_dict``, ``parameters`` or DDP, and follows ``.to()``.

    Args:
        detector: with its weights loaded. classes: how its class list relates to the student's; None for one without
            predictions.
        flip_channels: the student's images have the other channel order (RGB for BGR) than the detector expects.
    """

    @configurable
    def __init__(self, *, detector: nn.Module, classes: ClassMap | None, flip_channels: bool = False, **settings: Any):
        super().__init__(**settings)
        detector.eval().requires_grad_(False)
        # Outside the module tree: a list is not searched for parameters.
        self._hidden = [detector]
        self.classes = classes
        self.flip_channels = flip_channels

    @property
    def detector(self) -> nn.Module:
        return self._hidden[0]

    @property
    def name(self) -> str:
        return type(self.detector).__name__

    def train(self, mode: bool = True) -> HiddenDetector:
        """The detector stays in eval mode whatever ``mode`` says."""
        super().train(mode)
        self.detector.eval()
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> HiddenDetector:
        self.detector._apply(fn, recurse)
        return super()._apply(fn, recurse)


@TEACHER_REGISTRY.register()
class FrozenDetector(ReadThrough, HiddenDetector):
    """A trained detector of any class that can be a student; see :class:`HiddenDetector`."""

    reader: Student

    config_file: str = key(
        "",
        "the complete configuration that the teacher was trained with; required by `FrozenDetector`",
        path=f"{SECTION}.CONFIG_FILE",
    )
    weights: str = WEIGHTS
    opts: tuple = key((), "`KEY VALUE` overrides of the teacher's configuration", path=f"{SECTION}.OPTS")
    class_names: tuple[str, ...] = CLASS_NAMES
    precision: str = key(
        "step",
        'how `FrozenDetector` computes: `"step"`, as the step does (`SOLVER.AMP`); `"float32"`; `"bfloat16"` or '
        '`"float16"`, with its weights kept so, which takes half the memory and spares a cast of each in every step',
        Words(*PRECISIONS),
        path=f"{SECTION}.PRECISION",
    )

    @configurable
    def __init__(self, *, detector: nn.Module, **arguments: Any):
        super().__init__(detector=detector, **arguments)
        self.reader = student_of(detector)
        if self.reader.backbone is not None:
            prepare_for_inference(self.reader.backbone)
        keep_in(detector, self.precision)

    @classmethod
    def check_files(cls, cfg: CfgNode) -> None:
        load_teacher_config(cfg)
        find_weights(cfg)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Student | None = None) -> dict[str, Any]:
        node = cfg.MODEL.DISTILL.TEACHER
        if node.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
            raise ConfigError(
                f"{SECTION}.PRECISION is float16, which needs a CUDA device, and MODEL.DEVICE is {cfg.MODEL.DEVICE}. "
                'Set it to "bfloat16" or "step".'
            )
        teacher_cfg = load_teacher_config(cfg)
        # The student's random numbers must not depend on whether a teacher is built.
        with torch.random.fork_rng():
            detector = build_model(teacher_cfg)
        reader = check_teacher(detector, node.CONFIG_FILE)
        load_strict(detector, find_weights(cfg))
        classes = None
        if ONE_TO_ONE in reader.gives or cfg.MODEL.DISTILL.MATCHERS or compares_classes(cfg):
            teacher_names, source = teacher_class_names(cfg, teacher_cfg)
            num_student = cfg.MODEL.DETR.NUM_CLASSES if student is None else student.num_classes
            # Maps are learned whatever classes they lead to.
            asks = teacher_names is not None or compares_classes(cfg) or num_student != reader.num_classes
            student_names = training_class_names(cfg) if asks else None
            classes = match_classes(student_names, teacher_names, num_student, reader.num_classes, source)
            report_pairing(classes, student_names, teacher_names)
        flip_channels = teacher_cfg.INPUT.FORMAT != cfg.INPUT.FORMAT
        return {**cls.read_keys(cfg), "detector": detector, "classes": classes, "flip_channels": flip_channels}

    @torch.no_grad()
    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        """Looks at the student's images, and a DETR at the ground truth too; not at the student's features."""
        if self.flip_channels:
            flipped = [{**x, "image": x["image"].flip(0)} for x in step.batched_inputs]
            step = dataclasses.replace(step, batched_inputs=flipped)
        with self._computing():
            knowledge = self.reader.know(step, self.classes, capture)
        return dataclasses.replace(knowledge, decode=self._decoder(knowledge))

    def read_projection(self) -> nn.Module | None:
        layers = super().read_projection()
        return Projection(layers) if layers is not None and self.precision in HALVES else layers

    def _computing(self) -> contextlib.AbstractContextManager:
        return computes_in(self.precision, next(self.detector.parameters()).device)

    def _decoder(self, knowledge: Knowledge) -> Callable[[QueryGroup], DecoderOutput] | None:
        """``Knowledge.decode``, whoever calls it."""
        decode = knowledge.decode
        if decode is None or self.precision == "step":
            return decode

        def in_precision(group: QueryGroup) -> DecoderOutput:
            with self._computing():
                return decode(group)

        return in_precision
