"""Brings a detector trained elsewhere under this project's names, and prints the configuration that fits it."""

from __future__ import annotations

import argparse

from ..checkpoint.export import check_suffix, save_weights
from ..checkpoint.importing import SOURCES, import_checkpoint
from ..checkpoint.writing import check_place, write_atomically
from ..engine.report import report_user_errors


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = argument_parser().parse_args(argv)
    with report_user_errors():
        run(arguments)


def argument_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, choices=SOURCES, help="whose names and files they are")
    parser.add_argument("--weights", required=True, help="the authors' file, or a folder of transformers")
    parser.add_argument("--output", required=True, help="file to write; its suffix decides: .pth or .safetensors")
    parser.add_argument("--config", help="file to write the configuration to as well")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for what the checkpoint does not tell, such as its DC5"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Writes the weights, and prints their configuration.

    Raises:
        DetrDistillError: a checkpoint that cannot be imported, or a place that cannot be written to.
    """
    check_place("--output", arguments.output)
    check_suffix(arguments.output)
    if arguments.config:
        check_place("--config", arguments.config)
    imported = import_checkpoint(arguments.source, arguments.weights, arguments.opts)
    save_weights(imported.weights, arguments.output)
    imported.config["MODEL"]["WEIGHTS"] = arguments.output
    print(f"# {arguments.output}: {len(imported.weights)} tensors. The configuration that fits:")
    print(imported.yaml(), end="")
    if imported.class_names:
        print(f"# As a teacher: MODEL.DISTILL.TEACHER.CLASS_NAMES {list(imported.class_names)!r}")
    if arguments.config:
        write_atomically(arguments.config, lambda file: file.write(imported.yaml().encode()))


if __name__ == "__main__":
    main()
