"""Takes the student out of a run's checkpoint: weights that load in the plain detector, or a program that runs alone.

``.pth`` and ``.safetensors`` hold weights; ``.onnx`` and ``.pt2`` the whole detector, which the configuration tells:
uint8 images of any size and number in, boxes, scores and labels out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.class_names import names_in
from ..checkpoint.contents import say_average
from ..checkpoint.export import detecting_weights, detector_in, save_weights
from ..checkpoint.files import read_checkpoint
from ..checkpoint.writing import check_place
from ..engine.report import report_user_errors
from ..errors import CheckpointError, ConfigError
from .graphs import GRAPHS, export_graph

SUFFIXES = {"pth": ".pth", "safetensors": ".safetensors", "onnx": ".onnx", "program": ".pt2"}


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = argument_parser().parse_args(argv)
    with report_user_errors():
        print(run(arguments))


def argument_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of a run, such as OUTPUT_DIR/model_final.pth")
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--format", choices=SUFFIXES, help="default: by the suffix of --output")
    parser.add_argument("--config-file", metavar="FILE", help="onnx, program: the detector's, OUTPUT_DIR/config.yaml")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="onnx, program: of the images that it is traced with")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Writes the file; returns a line that says what is in it.

    Raises:
        DetrDistillError: a checkpoint, configuration or output that cannot be used.
    """
    check_place("--output", arguments.output)
    form = find_format(arguments.format, arguments.output)
    if form in GRAPHS:
        return export_graph(arguments, form)
    if arguments.config_file or arguments.opts:
        raise ConfigError(
            f"--config-file and KEY VALUE describe what {' and '.join(GRAPHS)} hold, and {form} holds weights alone. "
            "Leave them out."
        )
    checkpoint = read_checkpoint(arguments.weights)
    weights = detector_in(checkpoint)
    say_average(weights, arguments.weights)
    weights = detecting_weights(weights)
    save_weights(weights, arguments.output, names_in(checkpoint))
    return f"{arguments.output}: {len(weights)} tensors"


def find_format(given: str | None, output: str) -> str:
    """The format that is given, or that a file's suffix tells.

    Raises:
        CheckpointError: another suffix, or one of another format.
    """
    suffix = Path(output).suffix
    found = given or next((form for form, ending in SUFFIXES.items() if ending == suffix), None)
    if found is None or SUFFIXES[found] != suffix:
        wanted = SUFFIXES[found] if found else ", ".join(SUFFIXES.values())
        raise CheckpointError(f"{output}: the file's name must end in {wanted}.")
    return found


if __name__ == "__main__":
    main()
