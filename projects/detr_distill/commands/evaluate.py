"""Measures the AP of a trained detector on a set with labels."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..config.build import build_config
from ..data.formats import find_set
from ..engine import launch
from ..engine.report import report_user_errors
from ..options.recipes import evaluate_parser
from ..options.words import flags_first
from .recipe.detectors import find_detector
from .recipe.running import count_gpus
from .recipe.sets import entry_of, registered_name, set_name


def main(argv: list[str] | None = None) -> None:
    """The verb ``evaluate``; a user's error ends it with status 1."""
    parser = evaluate_parser()
    arguments = parser.parse_args(flags_first(parser, sys.argv[1:] if argv is None else argv))
    with report_user_errors():
        words = as_evaluation(arguments)
    launch.main(words)


def as_evaluation(arguments: argparse.Namespace) -> list[str]:
    """The command line of ``train_net.py --eval-only``.

    Raises:
        DetrDistillError: a detector or set that cannot be found, or fewer GPUs than were asked for.
    """
    found = find_detector(arguments.weights, "--weights", arguments.config_file or "", predictions=False, folders=False)
    keys: dict[str, Any] = {"MODEL.WEIGHTS": found.weights, "OUTPUT_DIR": arguments.output or _folder(found.weights)}
    if arguments.val:
        name = registered_name(arguments.val)
        if not name:
            name = set_name(arguments.val, "val")
            source = find_set(arguments.val, "val", "--val", arguments.val_images or "")
            registered = build_config(found.config_file, []).DATASETS.REGISTER
            others = [list(entry) for entry in registered if entry[0] != name]
            keys["DATASETS.REGISTER"] = [*others, entry_of(name, source)]
        keys["DATASETS.TEST"] = [name]
    words = ["--config-file", found.config_file, "--num-gpus", str(count_gpus(arguments.num_gpus)), "--eval-only"]
    return [*words, *found.opts, *(str(word) for pair in keys.items() for word in pair), *arguments.opts]


def _folder(weights: str) -> str:
    return os.path.join(os.path.dirname(weights), "evaluation")


if __name__ == "__main__":
    main()
