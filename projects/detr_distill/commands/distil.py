"""Trains a small detector with the help of a large one, by their names and a folder of data."""

from __future__ import annotations

import argparse
import shlex
import sys

from ..engine.report import report_user_errors
from ..errors import ConfigError
from ..options.recipes import distil_parser
from ..options.words import flags_first
from .recipe.compose import compose
from .recipe.running import run_recipe
from .recipe.students import student_names


def main(argv: list[str] | None = None) -> None:
    """The verb ``distil``; a user's error ends it with status 1."""
    parser = distil_parser()
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(flags_first(parser, words))
    if arguments.list:
        print("\n".join(student_names()))
        return
    with report_user_errors():
        check(arguments)
        recipe = compose(arguments, arguments.student, "--student", shlex.join(["detr-distill", "distil", *words]))
    run_recipe(recipe, arguments)


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where an option is missing without which there is nothing to do."""
    if not arguments.teacher:
        raise ConfigError(
            "--teacher is missing. Name a folder of transformers, a run's folder, a checkpoint or a file of "
            "predictions; without a teacher the verb is train."
        )
    if not arguments.student:
        raise ConfigError("--student is missing. Name one of --list, a configuration file or a folder of transformers.")


if __name__ == "__main__":
    main()
