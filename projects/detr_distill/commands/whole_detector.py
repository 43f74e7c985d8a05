"""The detector that a configuration and a checkpoint make together, for the export command."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.strict import load_strict
from ..config.defaults import detector_name
from ..data import read_configuration
from ..distill.students import student_of
from ..engine.model import build_named_model
from ..errors import ConfigError
from .predictor import WEIGHTS, find_class_names

logger = logging.getLogger(__name__)

CONFIGURATION = "config.yaml"  # as which a run leaves it in its folder


def build_untrained(arguments: argparse.Namespace, form: str) -> tuple[CfgNode, nn.Module]:
    """The configuration, and its detector on the CPU, in eval mode and without the weights.

    Of a distilling run that is the student.

    Raises:
        ConfigError: there is no configuration, or one that cannot be used.
    """
    file, weights = arguments.config_file or _beside(arguments.weights, form), arguments.weights
    keys = [*arguments.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    cfg = read_configuration(file, keys, plugins=True, weights=weights)
    cfg.MODEL.META_ARCHITECTURE = detector_name(cfg)
    cfg.freeze()
    return cfg, build_named_model(cfg).eval().requires_grad_(False)


def load_trained(cfg: CfgNode, detector: nn.Module, weights: str) -> list[str]:
    """Loads the weights in place; returns the names of the classes, which are numbers where nothing tells them.

    Raises:
        CheckpointError: they do not fit. ConfigError: another number of class names is told.
    """
    load_strict(detector, weights, WEIGHTS)
    count = student_of(detector).num_classes
    return list(find_class_names(cfg, weights, count) or map(str, range(count)))


def _beside(weights: str, form: str) -> str:
    """The configuration that a run has left beside its weights."""
    file = Path(weights).parent / CONFIGURATION
    if not file.is_file():
        raise ConfigError(
            f"--format {form} holds the whole detector, which its configuration describes; --config-file is not given, "
            f"and there is no {file}. Name the file; a run leaves it as OUTPUT_DIR/{CONFIGURATION}."
        )
    logger.info("--config-file is not given: %s is read.", file)
    return str(file)
