"""Teachers that are not trained: a frozen detector, and none at all.

A frozen detector is asked through ``read_knowledge``, which dispatches on its class: one that ``start_student`` knows
gives its feature maps; a DETR its queries and predictions as well, a convolutional detector its detections where a
matcher asks for them.
"""

from __future__ import annotations

import dataclasses
import os
from functools import singledispatch

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from ..checkpoint.strict import load_strict
from ..data import class_names
from ..detr import DetrDetector
from ..engine.configuration import build_config
from ..errors import ConfigError
from ..registry import TEACHER_REGISTRY
from ..structures import DecoderOutput, QueryGroup
from .classes import NAMES_KEY, ClassMap, match_classes
from .detections import count_classes, read_detections
from .inference_form import prepare_for_inference
from .knowledge import Knowledge
from .students import StudentStep, feature_channels, start_student


@TEACHER_REGISTRY.register()
class NoTeacher(nn.Module):
    """Knows nothing: for controls that train extra query groups without a teacher."""

    classes: ClassMap | None = None
    detector: DetrDetector | None = None

    def __init__(self, cfg=None, student=None):
        super().__init__()

    def forward(self, step: StudentStep, capture: frozenset[str]) -> Knowledge:
        return Knowledge()


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
            teacher_names = list(node.CLASS_NAMES) or _training_names(teacher_cfg)
            num_student = cfg.MODEL.DETR.NUM_CLASSES if student is None else count_classes(student)
            source = NAMES_KEY if node.CLASS_NAMES else "its training set"
            own_names, num_teacher = _training_names(cfg), count_classes(detector)
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


@singledispatch
def read_knowledge(
    detector: nn.Module, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    """What a trained detector knows of a batch; of one that nothing else is known of, the maps that its head reads.

    Args:
        detector: in eval mode. batched_inputs: detectron2 dicts with ``image`` in the detector's own channel order, for
            a DETR with ``instances``. classes: how its class list relates to the student's.
        capture: what to keep beside, see structures.py.
    """
    return Knowledge(start_student(detector, batched_inputs).features)


@read_knowledge.register
def _read_detr(
    detector: DetrDetector, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    assert classes is not None
    own = start_student(detector, batched_inputs)
    memory, targets = own.context
    memory = dataclasses.replace(memory, tokens=detector.encoder(memory))
    queries = detector.queries(memory)

    @torch.no_grad()
    def decode(group: QueryGroup) -> DecoderOutput:
        return detector.decode(memory, [group], capture)[group.name]

    output = decode(queries)
    targets = dataclasses.replace(targets, labels=classes.teacher_labels(targets.labels))
    cost = detector.criterion.matcher(output, targets)
    return Knowledge(
        own.features,
        output,
        queries,
        label_cost=cost,
        memory_shapes=memory.shapes,
        memory=memory,
        targets=targets,
        decode=decode,
    )


@read_knowledge.register(DenseDetector)
@read_knowledge.register(GeneralizedRCNN)
def _read_convolutional(
    detector: nn.Module, batched_inputs: list[dict], classes: ClassMap | None, capture: frozenset[str]
) -> Knowledge:
    return read_detections(detector, batched_inputs, capture)


def load_teacher_config(cfg: CfgNode) -> CfgNode:
    """The teacher's own complete configuration, on the student's device and with its kernels.

    Raises:
        ConfigError: no file is named, it does not exist, or a key of it or of OPTS is unknown.
    """
    node = cfg.MODEL.DISTILL.TEACHER
    if not node.CONFIG_FILE:
        raise ConfigError(
            "MODEL.DISTILL.TEACHER.CONFIG_FILE is empty. Name the configuration that the teacher was trained with."
        )
    file = find_file(node.CONFIG_FILE, "MODEL.DISTILL.TEACHER.CONFIG_FILE")
    try:
        teacher_cfg = build_config(file, list(node.OPTS))
    except ConfigError as error:
        raise ConfigError(f"MODEL.DISTILL.TEACHER.CONFIG_FILE or OPTS: {error}") from error
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    # Says that weights follow, so that a backbone does not load its own first.
    teacher_cfg.MODEL.WEIGHTS = node.WEIGHTS
    teacher_cfg.MODEL.DETR.DEFORMABLE_KERNEL = cfg.MODEL.DETR.DEFORMABLE_KERNEL
    return teacher_cfg


def find_weights(cfg: CfgNode) -> str:
    """The teacher's weights file.

    Raises:
        ConfigError: it does not exist; says how to train the teacher.
    """
    node = cfg.MODEL.DISTILL.TEACHER
    try:
        return find_file(node.WEIGHTS, "MODEL.DISTILL.TEACHER.WEIGHTS")
    except ConfigError as error:
        raise ConfigError(
            f"{error} To train the teacher: python train_net.py --config-file {node.CONFIG_FILE} --num-gpus 8"
        ) from error


def find_file(path: str, key: str) -> str:
    """A path as given, or relative to the project's root when it is not found from the current folder.

    Raises:
        ConfigError: a file is named that exists in neither place.
    """
    if not path or "://" in path or os.path.exists(path):
        return path
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    beside = os.path.join(root, path)
    if os.path.exists(beside):
        return beside
    raise ConfigError(f"{key} names {path}, which does not exist. Give a path from the current folder or a full path.")


def _training_names(cfg: CfgNode) -> list[str] | None:
    names = class_names(cfg.DATASETS.TRAIN[0]) if len(cfg.DATASETS.TRAIN) else None
    return None if names is None else list(names)
