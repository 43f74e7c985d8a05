"""Draws what a model sees: its detections and, with a teacher, query pairs and attention maps."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..checkpoint import SafeCheckpointer
from ..checkpoint.writing import check_place
from ..data import read_configuration, tested_class_names
from ..data.records import load_records
from ..distill import DistillDetector
from ..distill.matchers.adaptive import AdaptiveMatcher
from ..distill.students import student_of
from ..engine import DistillTrainer
from ..engine.device import choose_device
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..errors import ConfigError
from ..options.tools import visualize_parser
from ..visualization import Sample, load_samples, views_of, write_gallery


def main(argv: list[str] | None = None) -> None:
    """The command: writes the pictures and prints their paths; a user's error ends it with status 1."""
    arguments = visualize_parser().parse_args(argv)
    with report_user_errors():
        for file in run(arguments):
            print(file)


def run(arguments: argparse.Namespace) -> list[Path]:
    """Writes the pictures; returns their paths.

    Raises:
        DetrDistillError: a configuration, checkpoint or image that cannot be used.
    """
    check_place("--output", Path(arguments.output, "predictions.png"))
    cfg = read_configuration(arguments.config_file, arguments.opts, plugins=True, weights=arguments.weights)
    choose_device(cfg, argparse.Namespace(num_gpus=int(torch.cuda.is_available()), num_machines=1))
    cfg.freeze()
    prepare_datasets(cfg)
    model = DistillTrainer.build_model(cfg).eval()
    SafeCheckpointer(model, class_names=tested_class_names(cfg)).load_complete(arguments.weights)
    views = views_of(cfg, model)
    teacher = next((view for view in views if view.name == "teacher"), None)
    matcher = None
    if teacher is not None and isinstance(model, DistillDetector):
        matcher = AdaptiveMatcher(cfg, student_of(model.student), model.teacher)
    students = [view for view in views if view is not teacher]
    samples = choose_samples(cfg, arguments)
    return write_gallery(
        arguments.output, samples, students, teacher, matcher, score=arguments.score, sure=arguments.sure
    )


def choose_samples(cfg: CfgNode, arguments: argparse.Namespace) -> list[Sample]:
    """The files that ``--image`` names, or the first images of the test set.

    Raises:
        ConfigError: no test set, or no image wanted of it. DataError: an image cannot be read.
    """
    if arguments.image:
        return load_samples(cfg, [{"file_name": file} for file in arguments.image])
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty. Name a dataset there, or give images with --image.")
    if arguments.images < 1:
        raise ConfigError(f"--images is {arguments.images}; it must be 1 or more.")
    return load_samples(cfg, load_records(cfg, cfg.DATASETS.TEST[0])[: arguments.images])


if __name__ == "__main__":
    main()
