"""A configuration whose number of classes is 0 has as many as its training set."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from ..checkpoint.class_names import stored_class_names
from ..config.build import build_config
from ..config.defaults import CLASS_NODES, detector_name, num_classes_key
from ..errors import DataError
from .registration import training_class_names


def read_configuration(
    config_file: str, overrides: list[str], *, plugins: bool = False, weights: str | Callable[[CfgNode], str] = ""
) -> CfgNode:
    """``build_config``, and the number of classes from the training set where the detector's is 0; not frozen.

    Args:
        config_file, overrides, plugins: see :func:`build_config`.
        weights: a checkpoint that may tell the classes where the number is 0, or what names it for a configuration;
            looked into then alone.

    Raises:
        ConfigError: see :func:`build_config`. DataError: the number is 0, and the training set's classes are unknown.
    """
    cfg = build_config(config_file, overrides, plugins=plugins)
    key, count = num_classes_key(cfg)
    if count or detector_name(cfg) not in CLASS_NODES:
        return cfg
    file = weights if isinstance(weights, str) else weights(cfg)
    names = stored_class_names(file) or training_class_names(cfg)
    if names is None:
        raise DataError(
            f"{key} is 0, which takes the number of classes from DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)}, and "
            "nothing there tells it. Name a set whose annotation file is on this machine, or give the number."
        )
    cfg.merge_from_list([key, len(names)])
    return cfg
