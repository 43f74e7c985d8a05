"""Configuration and weights of a frozen teacher."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from torch import nn

from ...checkpoint.class_names import normal_names, stored_class_names
from ...config.build import flatten
from ...config.files import complete_path, find_file
from ...data import read_configuration, training_class_names
from ...errors import ConfigError, DetrDistillError, first
from ..classes import NAMES_KEY
from ..students.base import Student, known_students, student_of

logger = logging.getLogger(__name__)


def load_teacher_config(cfg: CfgNode, weights: str = "") -> CfgNode:
    """The teacher's own complete configuration, on the student's device and with its kernels.

    Args:
        weights: its checkpoint where it is not ``TEACHER.WEIGHTS``; may tell the number of its classes.

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
        teacher_cfg = read_configuration(file, list(node.OPTS), weights=weights or node.WEIGHTS)
    except ConfigError as error:
        raise ConfigError(
            f"MODEL.DISTILL.TEACHER.CONFIG_FILE or OPTS: {error} Keys of plug-ins of your own are known once PLUGINS "
            "of this run names their modules."
        ) from error
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    # Says that weights follow, so that a backbone does not load its own first.
    teacher_cfg.MODEL.WEIGHTS = weights or node.WEIGHTS
    teacher_cfg.MODEL.DETR.DEFORMABLE_KERNEL = cfg.MODEL.DETR.DEFORMABLE_KERNEL
    teacher_cfg.MODEL.DETR.MATCHER.SOLVER = cfg.MODEL.DETR.MATCHER.SOLVER
    return teacher_cfg


def teacher_class_names(cfg: CfgNode, teacher_cfg: CfgNode) -> tuple[tuple[str, ...] | None, str]:
    """The teacher's class names, and where they are from, or would be: named, in its weights, of its training set."""
    node = cfg.MODEL.DISTILL.TEACHER
    if node.CLASS_NAMES:
        return tuple(node.CLASS_NAMES), NAMES_KEY
    stored = stored_class_names(complete_path(node.WEIGHTS))
    trained_on, source = training_class_names(teacher_cfg), f"DATASETS.TRAIN {list(teacher_cfg.DATASETS.TRAIN)}"
    if stored is None:
        return trained_on, f"{source} of its file"
    if trained_on is None:
        logger.warning(
            "%s of the teacher's file is not registered here: its classes are those that its weights name, %s.",
            *(source, first(stored)),
        )
    return stored, f"MODEL.DISTILL.TEACHER.WEIGHTS {node.WEIGHTS}"


def teacher_settings(cfg: CfgNode) -> dict[str, object]:
    """What the teacher's file and its bases say, by key; empty where none is named or it cannot be read."""
    file = cfg.MODEL.DISTILL.TEACHER.CONFIG_FILE
    try:
        return flatten(CfgNode.load_yaml_with_base(complete_path(file))) if file else {}
    # What is wrong with the file is said, in words, when the teacher is built.
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError):
        return {}


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


def check_first_training(cfg: CfgNode, weights: str) -> None:
    """Compares the run's classes with those of the run that wrote ``weights``, whose configuration lies beside them.

    A label encoder knows classes by their index alone. Nothing is compared where either list is unknown.

    Raises:
        ConfigError: the first training had other classes, or the same in another order.
    """
    file = Path(weights).parent / "config.yaml"
    if not file.is_file():
        return
    try:
        names = training_class_names(read_configuration(str(file), []))
    except DetrDistillError:  # of another version, or with keys of a plug-in
        return
    own = training_class_names(cfg)
    if names is not None and own is not None and normal_names(names) != normal_names(own):
        raise ConfigError(
            f"MODEL.DISTILL.TEACHER.WEIGHTS {weights} learned the classes {list(names)[:5]}, as {file} says, and "
            f"DATASETS.TRAIN of this run has {list(own)[:5]}; a label encoder knows classes by their index. Train both "
            "on the same classes in the same order."
        )


def check_teacher(detector: nn.Module, config_file: str) -> Student:
    """The reader of a detector; raises ConfigError where its class is not known."""
    try:
        return student_of(detector)
    except ConfigError as error:
        raise ConfigError(
            f"MODEL.DISTILL.TEACHER.CONFIG_FILE {config_file} describes a {type(detector).__name__}; FrozenDetector "
            f"takes one of {', '.join(known_students())} and their subclasses. Set MODEL.META_ARCHITECTURE of that "
            "file."
        ) from error
