"""This project's keys in a detectron2 configuration, and which detector a configuration is of."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..moved import renamed
from . import general  # noqa: F401  (declares its keys)
from .keys import add_keys

__getattr__ = renamed(__name__, {"add_distill_config": "add_detr_distill_config"})


def add_detr_distill_config(cfg: CfgNode) -> None:
    """Adds this project's keys to a detectron2 configuration, in place: those of every plug-in that is known by now.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` returns.
    """
    add_keys(cfg)


# Meta-architectures, and the node below MODEL where each keeps its number of classes.
CLASS_NODES = {
    "DetrDetector": "DETR",
    "TransformersStudent": "DETR",
    "RetinaNet": "RETINANET",
    "FCOS": "RETINANET",
    "GeneralizedRCNN": "ROI_HEADS",
}


def detector_name(cfg: CfgNode) -> str:
    """The meta-architecture that detects: the student's where one is distilled."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE if name == "DistillDetector" else name


def num_classes_key(cfg: CfgNode) -> tuple[str, int]:
    """The key that holds the number of classes of the detector, or of the student, and its value.

    A detector of a kind that is not among ``CLASS_NODES`` is taken to keep it where R-CNNs do.
    """
    node = CLASS_NODES.get(detector_name(cfg), "ROI_HEADS")
    return f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
