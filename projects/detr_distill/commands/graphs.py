"""The part of the export command that writes whole detectors."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..deployment.base import Graph
from ..deployment.graphs import graph_of
from ..deployment.writing import import_runtime, write_onnx, write_program
from ..errors import ConfigError
from ..hugging_face.as_library import LibraryForm
from ..hugging_face.leaving import find_form, write_detector_folder
from .whole_detector import build_untrained, load_trained

GRAPHS = {"onnx": write_onnx, "program": write_program}
MULTIPLE = 32  # of the sides that a detector is traced with, in pixels


def export_graph(arguments: argparse.Namespace, form: str) -> str:
    """Writes a detector as ONNX or a program; returns a line that says how exact the file is.

    Raises:
        DetrDistillError: a configuration or checkpoint that cannot be used, or a detector that cannot be exported.
    """
    if form == "onnx":
        import_runtime()  # what is missing is said before the work
    cfg, detector = build_untrained(arguments, form)
    graph = graph_of(detector, cfg.INPUT.FORMAT)
    size = find_size(arguments.size, cfg.INPUT.MIN_SIZE_TEST, graph)
    names = load_trained(cfg, detector, arguments.weights)
    difference = GRAPHS[form](graph, Path(arguments.output), names, size)
    return (
        f"{arguments.output}: {len(names)} classes, images of any size and number; differs from PyTorch by "
        f"{difference:.0e}"
    )


def export_folder(arguments: argparse.Namespace) -> str:
    """Writes a detector as a folder of transformers; returns a line that says as which class, and how exact it is.

    Raises:
        DetrDistillError: see :func:`export_graph`; an output folder that holds something else.
    """
    cfg, detector = build_untrained(arguments, "transformers")
    form = find_form(cfg, detector)
    names = load_trained(cfg, detector, arguments.weights)
    kind, difference = write_detector_folder(cfg, detector, form, names, Path(arguments.output))
    said = f"{arguments.output}: {kind}, {len(names)} classes; differs from PyTorch by {difference:.0e}"
    if isinstance(form, LibraryForm) or not form:
        return said
    return f"{said}\nimport detr_distill before from_pretrained reads it: transformers has no class for it ({form})."


def find_size(given: str | None, shortest: int, graph: Graph) -> tuple[int, int]:
    """Height and width of the images that a graph is traced with.

    Args:
        given: ``480x640``; None: as large as in evaluation. shortest: side of an image in evaluation.

    Raises:
        ConfigError: it is no size, or one that the graph does not take.
    """
    if not given:
        side = -(-max(shortest, graph.smallest) // MULTIPLE) * MULTIPLE
        return side, side + MULTIPLE
    found = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", given)
    if not found:
        raise ConfigError(f"--size is {given!r}; give HEIGHTxWIDTH in pixels, such as 480x640.")
    height, width = int(found[1]), int(found[2])
    if height % graph.multiple or width % graph.multiple:
        near = "x".join(str(max(1, round(side / graph.multiple)) * graph.multiple) for side in (height, width))
        raise ConfigError(
            f"--size is {given!r}, and this detector takes images whose sides are multiples of {graph.multiple} "
            f"pixels. Give {near}, and pad images to such sides."
        )
    if min(height, width) < graph.smallest:
        raise ConfigError(
            f"--size is {given!r}, and this detector takes images of at least {graph.smallest} pixels a side."
        )
    return height, width
