"""Trains a detector without a teacher, by its name and a folder of data, or what a configuration describes."""

from __future__ import annotations

import argparse
import shlex
import sys

from ..engine import launch
from ..engine.report import report_user_errors
from ..errors import ConfigError
from ..options.recipes import train_parser
from ..options.words import flags_first
from .recipe.compose import compose
from .recipe.running import count_gpus, run_recipe
from .recipe.students import student_names


def main(argv: list[str] | None = None) -> None:
    """The verb ``train``; a user's error ends it with status 1."""
    parser = train_parser()
    given = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(flags_first(parser, given))
    if arguments.list:
        print("\n".join(student_names()))
        return
    with report_user_errors():
        check(arguments)
        if arguments.config_file:
            words = as_training(arguments)
        else:
            recipe = compose(arguments, arguments.detector, "--detector", shlex.join(["detr-distill", "train", *given]))
    if arguments.config_file:
        launch.main(words)
    else:
        run_recipe(recipe, arguments)


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError unless the command line has one of a configuration and a detector's name, and what fits it."""
    if bool(arguments.config_file) == bool(arguments.detector):
        raise ConfigError(
            f"--config-file is {arguments.config_file} and --detector {arguments.detector}: give one of them, a "
            "configuration, or a name of --list with --train DATA."
        )
    if arguments.resume and arguments.detector:
        raise ConfigError("--resume goes with --config-file: with --detector the same command goes on by itself.")
    idle = [f"--{name.replace('_', '-')}" for name in ("train", "val", "epochs", "dry_run") if vars(arguments)[name]]
    if arguments.config_file and idle:
        raise ConfigError(
            f"{' and '.join(idle)} with --config-file: the configuration has its own. Give KEY VALUE pairs, such as "
            "DATASETS.TRAIN or SOLVER.EPOCHS, or a detector's name with --detector."
        )


def as_training(arguments: argparse.Namespace) -> list[str]:
    """The command line of ``train_net.py`` for a configuration.

    Raises:
        ConfigError: there are fewer GPUs than were asked for.
    """
    words = ["--config-file", arguments.config_file, "--num-gpus", str(count_gpus(arguments.num_gpus))]
    for option in ("num_machines", "machine_rank", "dist_url"):
        words += [f"--{option.replace('_', '-')}", str(vars(arguments)[option])]
    words += [f"--{option}" for option in ("resume", "overwrite") if vars(arguments)[option]]
    output = ["OUTPUT_DIR", arguments.output] if arguments.output else []
    return [*words, *arguments.opts, *output]


if __name__ == "__main__":
    main()
