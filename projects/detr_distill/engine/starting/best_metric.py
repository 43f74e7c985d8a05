"""Which metric of which test set decides what the best checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from ...config.spelling import suggest
from ...data import class_names
from ...errors import ConfigError

KEY = "TEST.BEST_METRIC"
BOX_METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/APm", "bbox/APl")


def metric_names(metric: str, test_sets: Sequence[str]) -> list[str]:
    """Names under which an evaluation may give a metric; the first that is there counts.

    With several sets every name starts with its set's, and a metric without one is of the first set that has it.

    Args:
        metric: value of ``TEST.BEST_METRIC``. test_sets: ``DATASETS.TEST``.
    """
    of_set = [name for name in test_sets if metric.startswith(f"{name}/")]
    if len(test_sets) < 2:
        return [metric, *(metric.removeprefix(f"{name}/") for name in of_set)]
    return [metric] if of_set else [f"{name}/{metric}" for name in test_sets]


def check_best_metric(cfg: CfgNode) -> None:
    """Raises ConfigError where no evaluation of the run will compute ``TEST.BEST_METRIC``."""
    metric, sets = cfg.TEST.BEST_METRIC, list(cfg.DATASETS.TEST)
    if not metric or not sets:
        return
    names = {name: class_names(name) for name in sets}
    if any(found is None for found in names.values()):
        return
    known = [*BOX_METRICS, *(f"bbox/AP-{name}" for found in names.values() for name in found or ())]
    prefixes = [f"{name}/" for name in sets if metric.startswith(f"{name}/")]
    if metric not in known and not any(metric.removeprefix(prefix) in known for prefix in prefixes):
        choices = [*known, *(f"{name}/{choice}" for name in sets for choice in BOX_METRICS)]
        raise ConfigError(
            f"{KEY} is {metric!r}, which is not computed.{suggest(metric, choices)} There are "
            f"{', '.join(BOX_METRICS)}, bbox/AP-CLASS and, of one of several test sets, "
            "SET/bbox/AP; empty keeps no best checkpoint."
        )
