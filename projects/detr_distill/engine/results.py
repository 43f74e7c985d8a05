"""The metrics of an evaluation, as a file of the output folder."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..checkpoint.writing import write_atomically

RESULTS_FILE = "results.json"


def write_results(cfg: CfgNode, results: dict, iteration: int | None = None, file: str = RESULTS_FILE) -> None:
    """Writes metrics to ``OUTPUT_DIR/<file>``: ``{"iteration": ..., "datasets": {name: {task: {metric: ...}}}}``.

    Undefined numbers become null. Does nothing on all processes but the first.
    """
    if not comm.is_main_process():
        return
    datasets = {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results
    text = json.dumps(without_nan({"iteration": iteration, "datasets": datasets}), indent=2)
    write_atomically(os.path.join(cfg.OUTPUT_DIR, file), lambda file: file.write(text.encode()))


def without_nan(value: Any) -> Any:
    """A number, or a tree of dictionaries of them, with None in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {key: without_nan(member) for key, member in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
