"""Everything that a run will need is looked at before its first iteration, and before its folder is touched."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from ...config.defaults import CLASS_NODES, detector_name, num_classes_key
from ...data import check_num_classes, register_configured
from ...data.checks import CheckedSet, check_set
from ...data.class_lists import check_class_lists
from ...data.records import check_registered
from ...data.strong import check_strong
from ...data.unlabeled import check_unlabeled_sets
from ...detr.capacity import object_limits
from ...distill.build import choose_plugins
from ...distill.teacher_start import check_start_files
from ...errors import ConfigError, DataError
from ...registry import TEACHER_REGISTRY, look_up
from ..evaluation import check_evaluator
from .best_metric import check_best_metric


def check_start(cfg: CfgNode, *, training: bool) -> list[str]:
    """Checks the sets with their images, their class lists, and the teacher's files; see data/checks.py.

    Args:
        cfg: of the run. training: it trains; otherwise it evaluates alone, and reads no training set.

    Returns:
        What is no fault but deserves a warning, a sentence each.

    Raises:
        ConfigError: a teacher's file is missing, nothing is to be done, or ``TEST.BEST_METRIC`` will not be computed.
        DataError: a set cannot be used, two sets differ in their classes, or there is nothing to learn from.
    """
    register_configured(cfg)
    _check_names(cfg, training)
    if cfg.MODEL.META_ARCHITECTURE == "DistillDetector":
        teacher = choose_plugins(cfg).teacher
        look_up(TEACHER_REGISTRY, teacher, "MODEL.DISTILL.TEACHER.NAME").check_files(cfg)
    if training:
        check_start_files(cfg)
    trained = [check_set(cfg, name, "DATASETS.TRAIN") for name in cfg.DATASETS.TRAIN] if training else []
    tested = [check_set(cfg, name, "DATASETS.TEST") for name in cfg.DATASETS.TEST]
    prepare_datasets(cfg)
    if training:
        check_strong(cfg)
        check_unlabeled_sets(cfg)
        check_best_metric(cfg)
    unmeasured = [
        f"DATASETS.TEST {found.name} has no annotated object: predictions for it are written, and there is no AP."
        for found in tested
        if not found.total
    ]
    crowded = [*_too_many_objects(cfg, "DATASETS.TRAIN", trained), *_too_many_objects(cfg, "DATASETS.TEST", tested)]
    return [*_little_to_learn(cfg, trained), *crowded, *unmeasured]


def prepare_datasets(cfg: CfgNode) -> None:
    """Registers the datasets, compares their class lists, and the detector's number of classes with them.

    Raises:
        DataError: see ``register_datasets``, ``check_class_lists`` and ``check_num_classes``.
    """
    register_configured(cfg)
    # Before the number: two sets that differ would each ask for another one.
    check_class_lists(cfg)
    if detector_name(cfg) in CLASS_NODES:
        key, count = num_classes_key(cfg)
        check_num_classes(tuple(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])), count, key)


def _check_names(cfg: CfgNode, training: bool) -> None:
    """Every set is registered, and of COCO's format where it is evaluated; without training one is evaluated."""
    if not training and not cfg.DATASETS.TEST:
        raise ConfigError(
            "--eval-only: DATASETS.TEST is empty, so nothing would be evaluated. Name a set, such as digits_val."
        )
    if len(set(cfg.DATASETS.TEST)) < len(cfg.DATASETS.TEST):
        raise ConfigError(f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}. Name each set once.")
    for key, names in (
        ("DATASETS.TRAIN", cfg.DATASETS.TRAIN if training else ()),
        ("DATASETS.TEST", cfg.DATASETS.TEST),
    ):
        if names:
            check_registered(names, key)
    for name in cfg.DATASETS.TEST:
        check_evaluator(name)


def _little_to_learn(cfg: CfgNode, trained: Sequence[CheckedSet]) -> list[str]:
    """Warnings of sets without usable objects, or in few of their images; raises DataError where none has any."""
    if trained and not any(found.total for found in trained):
        raise DataError(
            f"DATASETS.TRAIN {', '.join(found.name for found in trained)}: not one usable object in "
            f"{sum(found.images for found in trained)} images (crowds, and boxes that DATASETS.BAD_BOXES drops, teach "
            "nothing), so there is nothing to learn from. Check the 'annotations' of the annotation file."
            + (
                " DATALOADER.FILTER_EMPTY_ANNOTATIONS True leaves no image."
                if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
                else ""
            )
        )
    return [
        f"DATASETS.TRAIN {found.name}: {found.without} of {found.images} images have no usable object to learn from "
        "(crowds do not count). Check the annotation file, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS True to leave "
        "them out."
        for found in trained
        if 2 * found.without > found.images and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    ]


def _too_many_objects(cfg: CfgNode, key: str, sets: Sequence[CheckedSet]) -> list[str]:
    """Warnings of images with more objects than queries can find; the training groups' concern training alone."""
    if detector_name(cfg) != "DetrDetector":
        return []
    limits = object_limits(cfg) if key == "DATASETS.TRAIN" else object_limits(cfg)[:1]
    return [
        f"{key} {found.name}: {found.images_above(limit.objects)} of {found.images} images have more than "
        f"{limit.objects} objects, at most {found.most}; {limit.effect}. Set {limit.key} to {limit.needed(found.most)} "
        "or more."
        for found in sets
        for limit in limits
        if found.most > limit.objects
    ]
