"""The options of the verbs ``distil``, ``train`` and ``evaluate``."""

from __future__ import annotations

import argparse

from .training import add_machines, add_overwrite
from .words import add_overrides

DATA = "a folder or file of COCO, Pascal VOC or YOLO, or a registered name such as digits_train"
HELD_OUT = 0.2


def distil_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill distil``."""
    parser = argparse.ArgumentParser(
        prog="detr-distill distil",
        description="Trains a small detector with the help of a large one. The same command goes on with a run that "
        "was stopped.",
    )
    parser.add_argument(
        "--teacher",
        metavar="PATH",
        help="a folder of transformers, a run's folder, a checkpoint, or a file of predictions",
    )
    parser.add_argument(
        "--teacher-config", metavar="FILE", help="of a checkpoint that has no config.yaml beside it: its configuration"
    )
    parser.add_argument(
        "--student", metavar="NAME", help="of --list; or a configuration file, a folder of transformers"
    )
    parser.add_argument("--list", action="store_true", help="show the students' names and end")
    _add_sets(parser)
    parser.add_argument("--unlabeled", metavar="FOLDER", help="images without labels, on which the teacher teaches too")
    _add_run(parser)
    return parser


def train_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill train``."""
    parser = argparse.ArgumentParser(
        prog="detr-distill train",
        description="Trains a detector by its name on your data, without a teacher, or what a configuration describes.",
    )
    parser.add_argument("--config-file", metavar="FILE", help="of a run; then --output is its OUTPUT_DIR")
    parser.add_argument("--resume", action="store_true", help="with --config-file: go on from the last checkpoint")
    parser.add_argument(
        "--detector", metavar="NAME", help="of --list; or a configuration file, a folder of transformers"
    )
    parser.add_argument("--list", action="store_true", help="show the detectors' names and end")
    _add_sets(parser)
    _add_run(parser)
    add_machines(parser)
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill evaluate``."""
    parser = argparse.ArgumentParser(
        prog="detr-distill evaluate", description="Measures AP of a trained detector on a set with labels."
    )
    parser.add_argument("--weights", required=True, metavar="PATH", help="a run's folder, or a checkpoint")
    parser.add_argument("--config-file", metavar="FILE", help="of a checkpoint that has no config.yaml beside it")
    parser.add_argument("--val", metavar="DATA", help=f"default: the configuration's DATASETS.TEST; or {DATA}")
    parser.add_argument("--val-images", metavar="FOLDER", help="where they are, if not where they are looked for")
    parser.add_argument(
        "--output", metavar="DIR", help="for evaluation.json and predictions (default: the run's folder)"
    )
    _add_gpus(parser)
    add_overrides(parser)
    return parser


def _add_sets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", metavar="DATA", help=DATA)
    parser.add_argument(
        "--val", metavar="DATA", help="the same; default: the other part of --train, or a share of its images"
    )
    for part in ("train", "val"):
        parser.add_argument(f"--{part}-images", metavar="FOLDER", help=f"images of --{part}, if not beside the labels")
    parser.add_argument(
        "--hold-out",
        type=float,
        default=HELD_OUT,
        metavar="SHARE",
        help="of the training images, always the same, if there is nothing else to evaluate on (default %(default)s)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=float, help="passes over the training images (default 50)")
    parser.add_argument("--output", metavar="DIR", help="folder of the run")
    _add_gpus(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the configuration and end")
    add_overwrite(parser)
    add_overrides(parser)


def _add_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-gpus", type=int, help="default: all that are there; 0: on the CPU")
