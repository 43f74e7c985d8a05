"""Draws what a trained detector finds, or writes it: a teacher that costs nothing in the training step.

The detector is a run's, one of a configuration and its weights, a folder of transformers or, to draw, an exported file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import track

from ..checkpoint.writing import check_place
from ..config.build import build_config
from ..data import read_configuration
from ..data.formats import image_records
from ..data.mapper import test_resize
from ..data.predictions.description import DESCRIPTION
from ..engine.device import choose_device
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..errors import CheckpointError, ConfigError
from ..options.simple import predict_parser
from ..options.tools import SCORE
from ..options.words import keys_apart
from .drawing import draw_media, from_onnx, from_predictor
from .predictions import Form, load_sets, write_predictions
from .predictor import load_predictor
from .recipe.detectors import find_detector
from .recipe.students import OF_A_FOLDER


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = predict_parser().parse_args(argv)
    with report_user_errors():
        print(run(arguments))


def run(arguments: argparse.Namespace) -> str:
    """Writes or draws the predictions; returns a line that says where they are.

    Raises:
        DetrDistillError: a configuration, checkpoint, data set or output that cannot be used.
    """
    arguments.dataset, arguments.opts = keys_apart(arguments.dataset, arguments.opts)
    arguments.images, arguments.opts = keys_apart(arguments.images, arguments.opts)
    arguments.maps, arguments.opts = keys_apart(arguments.maps, arguments.opts)
    check_options(arguments)
    if arguments.weights.endswith(".onnx"):
        return _draw_exported(arguments)
    if arguments.output:
        check_output(Path(arguments.output))
    weights, config_file, opts = find_files(arguments)
    cfg = read_configuration(config_file, [*opts, *arguments.opts], plugins=True, weights=weights)
    choose_device(cfg, argparse.Namespace(num_gpus=int(torch.cuda.is_available()), num_machines=1))
    cfg.freeze()
    if arguments.draw:
        predictor = load_predictor(cfg, weights)
        detect = from_predictor(cfg, predictor, SCORE if arguments.score is None else arguments.score)
        return draw_media(arguments.images, Path(arguments.draw), detect, predictor.class_names)
    prepare_datasets(cfg)
    names = tuple(arguments.images or arguments.dataset or cfg.DATASETS.TRAIN)
    load = image_records(*names, key="--images") if arguments.images else load_sets(cfg, names)
    score = Form.score if arguments.score is None else arguments.score
    form = Form(
        arguments.batch, arguments.best_classes, arguments.dtype, score, tuple(arguments.maps), arguments.mirrored
    )
    return write_predictions(cfg, weights, names, load, Path(arguments.output), form, track)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where options are out of range, or do not go together."""
    if arguments.batch < 1 or arguments.best_classes < 0:
        raise ConfigError(
            f"--batch is {arguments.batch} and --best-classes {arguments.best_classes}; the first is 1 or more, the "
            "second 0 or more."
        )
    if arguments.score is not None and not 0 <= arguments.score <= 1:
        raise ConfigError(f"--score is {arguments.score}; a score is a probability from 0 to 1.")
    if arguments.images and arguments.dataset:
        raise ConfigError("--images and --dataset are both given. Name a data set, or images.")
    if bool(arguments.draw) == bool(arguments.output):
        raise ConfigError(
            f"--draw is {arguments.draw} and --output {arguments.output}: give one of them, a folder for images with "
            "their detections, or a file or folder for programs."
        )
    if arguments.mirrored and not arguments.maps:
        raise ConfigError("--mirrored is of maps, and --maps names none. Name them, or leave it out.")
    if arguments.maps and (arguments.draw or arguments.output.endswith(".json")):
        raise ConfigError(
            f"--maps: {arguments.draw or arguments.output} holds detections alone. Let --output name a folder."
        )
    if arguments.draw and not arguments.images:
        raise ConfigError("--draw draws into images and videos: name them with --images.")


def find_files(arguments: argparse.Namespace) -> tuple[str, str, tuple[str, ...]]:
    """Weights, or a folder of transformers; a configuration; and the overrides that make it the plain detector's.

    Raises:
        CheckpointError, ConfigError: see ``find_detector``.
    """
    if arguments.config_file:
        return arguments.weights, arguments.config_file, ()
    found = find_detector(arguments.weights, "--weights", predictions=False)
    return found.weights, found.config_file or OF_A_FOLDER, found.opts


def _draw_exported(arguments: argparse.Namespace) -> str:
    if not arguments.draw:
        raise ConfigError(
            f"--weights {arguments.weights} is an exported detector, which --draw takes, and not --output."
        )
    file, resize = Path(arguments.weights), None
    if not file.is_file():
        raise CheckpointError(f"--weights {file}: there is no such file (working folder: {Path.cwd()}).")
    if arguments.config_file:
        resize = test_resize(build_config(arguments.config_file, arguments.opts))
    detect, names = from_onnx(file, resize, SCORE if arguments.score is None else arguments.score)
    return draw_media(arguments.images, Path(arguments.draw), detect, names)


def check_output(output: Path) -> None:
    """Raises OutputError where ``--output`` cannot be written, before anything else is done."""
    check_place("--output", output if output.suffix == ".json" else output / DESCRIPTION)


if __name__ == "__main__":
    main()
