"""The part of the export command that writes whole detectors."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..checkpoint.strict import load_strict
from ..config.defaults import detector_name
from ..data import read_configuration
from ..deployment.graphs import graph_of
from ..deployment.writing import write_onnx, write_program
from ..distill.students import student_of
from ..engine.model import build_named_model
from ..errors import ConfigError
from .predictor import find_class_names

GRAPHS = {"onnx": write_onnx, "program": write_program}
MULTIPLE = 32  # of the sides that a detector is traced with, in pixels


def export_graph(arguments: argparse.Namespace, form: str) -> str:
    """Writes the detector of a configuration and a checkpoint; returns a line that says how exact the file is.

    Raises:
        DetrDistillError: a configuration or checkpoint that cannot be used, or a detector that cannot be exported.
    """
    if not arguments.config_file:
        raise ConfigError(
            f"--format {form} holds the whole detector, which its configuration describes, and --config-file is not "
            "given. Name the file; a run leaves it as OUTPUT_DIR/config.yaml."
        )
    weights = arguments.weights
    keys = [*arguments.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    cfg = read_configuration(arguments.config_file, keys, plugins=True, weights=weights)
    cfg.MODEL.META_ARCHITECTURE = detector_name(cfg)  # of a distilling run the student, without its teacher
    cfg.freeze()
    detector = build_named_model(cfg).eval().requires_grad_(False)
    graph = graph_of(detector, cfg.INPUT.FORMAT)
    load_strict(detector, weights, "--weights")
    count = student_of(detector).num_classes
    names = find_class_names(cfg, weights, count) or [str(index) for index in range(count)]
    side = -(-cfg.INPUT.MIN_SIZE_TEST // MULTIPLE) * MULTIPLE
    size = read_size(arguments.size) if arguments.size else (side, side + MULTIPLE)
    difference = GRAPHS[form](graph, Path(arguments.output), names, size)
    return (
        f"{arguments.output}: {count} classes, images of any size and number; differs from PyTorch by {difference:.0e}"
    )


def read_size(text: str) -> tuple[int, int]:
    """``480x640`` as (height, width).

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", text)
    if not found:
        raise ConfigError(f"--size is {text!r}; give HEIGHTxWIDTH in pixels, such as 480x640.")
    return int(found[1]), int(found[2])
