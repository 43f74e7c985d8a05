"""Brings a detector trained elsewhere under this project's names, and prints the configuration that fits it."""

from __future__ import annotations

import argparse

from ..checkpoint.export import check_suffix, save_weights
from ..checkpoint.importing import import_checkpoint
from ..checkpoint.writing import check_place, write_atomically
from ..engine.report import report_user_errors
from ..options.tools import import_parser


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = import_parser().parse_args(argv)
    with report_user_errors():
        run(arguments)


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
