"""A detector's graph as a file, checked before it is left there."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.writing import write_atomically
from ..errors import ConfigError
from .base import Graph
from .checking import CASES, Case, Run, compare, make_case
from .tracing import traceable

# Names of the lengths that may change from call to call.
NAMED = {"images": {0: "batch", 2: "height", 3: "width"}, "sizes": {0: "batch"}}
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels")
NAMES_KEY = "names"  # of the class names in a file's metadata
PROGRAM_NOTE = "metadata.json"  # of the file inside a program


def import_runtime() -> Any:
    """onnxruntime.

    Raises:
        ConfigError: it, or what writes ONNX, is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so less clearly)
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs onnx, onnxscript and onnxruntime ({error}): pip install 'detr_distill[onnx]'"
        ) from error
    return onnxruntime


def write_onnx(graph: Graph, path: Path, class_names: Sequence[str], size: tuple[int, int]) -> float:
    """Writes an ONNX file with dynamic batch, height and width, checked in onnxruntime at other sizes and batches.

    Args:
        graph: of the detector. class_names: kept in the metadata ``names``, a JSON list. size: (height, width) of
            the images that the graph is traced with, in pixels.

    Returns:
        The largest difference from PyTorch in a score, or in a box as a share of the image.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, or the exporter cannot write this detector.
        CheckpointError: the file detects something else than the detector.
    """
    onnxruntime = import_runtime()
    exported = trace(graph, size, "onnx")
    content, session = _build_session(onnxruntime, exported, graph, class_names)

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        values = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), values)]

    return _check_and_write(graph, run, path, content, size)


def _build_session(
    onnxruntime: Any, exported: torch.export.ExportedProgram, graph: Graph, class_names: Sequence[str]
) -> tuple[bytes, Any]:
    """A file's content, and onnxruntime's reading of it.

    The exporter's optimiser joins limits of one value wrongly where a library's network limits it twice; a file that
    cannot be read is written again without it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    fault: Exception | None = None
    for optimize in (True, False):
        write = partial(torch.onnx.export, exported, dynamo=True, input_names=INPUTS, output_names=OUTPUTS)
        names = NAMED if graph.multiple == 1 else None
        program = _in_words("onnx", partial(write, dynamic_shapes=names, verbose=False, optimize=optimize))
        program.model.metadata_props[NAMES_KEY] = json.dumps(list(class_names))
        content = program.model_proto.SerializeToString()
        try:
            return content, onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of several classes, none of which is public
            fault = error
    raise ConfigError(
        f"--format onnx: onnxruntime {onnxruntime.__version__} cannot read what torch {torch.__version__} writes of "
        f"this detector: {str(fault)[:300]} Export it as a program (--format program)."
    ) from fault


def write_program(graph: Graph, path: Path, class_names: Sequence[str], size: tuple[int, int]) -> float:
    """Writes a program of ``torch.export``, which :func:`torch.export.load` reads; otherwise as :func:`write_onnx`."""
    program = trace(graph, size, "program")
    file = io.BytesIO()
    note = json.dumps({NAMES_KEY: list(class_names)})
    torch.export.save(program, file, extra_files={PROGRAM_NOTE: note})
    return _check_and_write(graph, program.module(), path, file.getvalue(), size)


def trace(graph: Graph, size: tuple[int, int], form: str) -> torch.export.ExportedProgram:
    """The graph as a program, in which batch, height and width may change from call to call.

    Args:
        size: (height, width) of the images that it is traced with. form: that is asked for, for the message.

    Raises:
        ConfigError: torch cannot trace it.
    """
    least = graph.smallest // graph.multiple
    shape = {axis: graph.multiple * torch.export.Dim(name, min=least) for axis, name in ((2, "height"), (3, "width"))}
    batch = {} if graph.most_images else {0: torch.export.Dim("batch")}
    shapes = {"images": {**batch, **shape}, "sizes": batch}
    inputs = make_case(Case(2), graph, size)
    with traceable(graph):
        return _in_words(form, lambda: torch.export.export(graph, inputs, dynamic_shapes=shapes))


def _in_words(form: str, make: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own code
            return make()
    # An exporter raises whatever it stumbles over first.
    except Exception as error:
        raise ConfigError(
            f"--format {form}: torch {torch.__version__} cannot export this detector: {str(error)[:400]} "
            "Export its weights (--format safetensors), or another detector."
        ) from error


def _check_and_write(graph: Graph, run: Run, path: Path, content: bytes, size: tuple[int, int]) -> float:
    difference = max(compare(graph, run, case, size, str(path)) for case in CASES)
    write_atomically(path, lambda file: file.write(content))
    return difference
