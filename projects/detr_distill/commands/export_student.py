"""Takes the student out of a run's checkpoint: weights, a folder of transformers, or a program that runs alone.

pth and safetensors hold weights that load in the plain detector; transformers is a folder that from_pretrained reads;
onnx and program hold the whole detector: uint8 images of any size and number in, boxes, scores and labels out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.class_names import names_in
from ..checkpoint.contents import say_average
from ..checkpoint.export import detecting_weights, detector_in, save_weights
from ..checkpoint.files import read_checkpoint
from ..checkpoint.writing import check_folder_place, check_place
from ..engine.report import report_user_errors
from ..errors import CheckpointError, ConfigError
from ..options.tools import FORMATS, export_parser
from .graphs import GRAPHS, export_folder, export_graph
from .whole_detector import build_untrained, load_trained

SUFFIXES = {"pth": ".pth", "safetensors": ".safetensors", "onnx": ".onnx", "program": ".pt2"}
FOLDER = "transformers"


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = export_parser().parse_args(argv)
    with report_user_errors():
        print(run(arguments))


def run(arguments: argparse.Namespace) -> str:
    """Writes the file or folder; returns a line that says what is in it.

    Raises:
        DetrDistillError: a checkpoint, configuration or output that cannot be used.
    """
    form = find_format(arguments.format, arguments.output)
    if form == FOLDER:
        check_folder_place("--output", arguments.output)
    else:
        check_place("--output", arguments.output)
    if arguments.size and form not in GRAPHS:
        raise ConfigError(f"--size is of the images that {' and '.join(GRAPHS)} are traced with. Leave it out.")
    if form in GRAPHS:
        return export_graph(arguments, form)
    return export_folder(arguments) if form == FOLDER else export_weights(arguments, form)


def export_weights(arguments: argparse.Namespace, form: str) -> str:
    """Writes weights alone; with a configuration, what its detector has taken of them.

    Raises:
        DetrDistillError: a checkpoint that cannot be read, or does not fit the configuration.
    """
    names: Sequence[str] | None
    if arguments.config_file:
        cfg, detector = build_untrained(arguments, form)
        names = load_trained(cfg, detector, arguments.weights)
        weights = detecting_weights(detector.state_dict())
    elif arguments.opts:
        raise ConfigError(f"KEY VALUE changes a configuration, and --config-file is not given; {form} needs none.")
    else:
        checkpoint = read_checkpoint(arguments.weights)
        names, weights = names_in(checkpoint), detector_in(checkpoint)
        say_average(weights, arguments.weights)
        weights = detecting_weights(weights)
    save_weights(weights, arguments.output, names, form)
    return f"{arguments.output}: {len(weights)} tensors"


def find_format(given: str | None, output: str) -> str:
    """The format that is given, or that a file's suffix tells.

    Raises:
        CheckpointError: a suffix that tells none, or another one than is given.
    """
    suffix = Path(output).suffix
    told = next((form for form, ending in SUFFIXES.items() if ending == suffix), None)
    if given is None and told is None:
        raise CheckpointError(
            f"{output}: the name must end in {', '.join(SUFFIXES.values())}, or --format must say what it is: "
            f"{', '.join(FORMATS)}."
        )
    if given is not None and told not in (None, given):
        raise CheckpointError(
            f"--output {output} ends as a file of {told} does, and --format is {given}. Change one of the two"
            f"{f'; a file of {given} ends in {SUFFIXES[given]}' if given in SUFFIXES else ''}."
        )
    return given or told or ""


if __name__ == "__main__":
    main()
