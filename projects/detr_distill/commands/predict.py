"""Draws what a trained detector finds, or writes it: a teacher that costs nothing in the training step.

The detector is a run's, one of a configuration and its weights, a folder of transformers or, to draw, an exported file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from rich.progress import track
from torch import Tensor

from ..checkpoint.files import write_atomically
from ..checkpoint.writing import check_place
from ..config.build import build_config
from ..data import DetrDatasetMapper, TestLoader, read_configuration, register_configured
from ..data.formats import image_records
from ..data.mapper import test_resize
from ..data.predictions.description import DESCRIPTION, Description, hash_images, read_images
from ..data.predictions.store import NOTHING, PredictionStore, begin_store, missing_parts, write_part
from ..data.records import check_registered, load_images
from ..engine.device import choose_device
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..errors import CheckpointError, ConfigError
from ..options.simple import LEAST, predict_parser
from ..options.tools import SCORE
from .drawing import draw_media, from_onnx, from_predictor
from .predictor import Predictor, load_predictor
from .recipe.detectors import find_detector
from .recipe.students import OF_A_FOLDER
from .results_format import check_ids, coco_results, find_categories

PART_IMAGES = 1000


@dataclass(frozen=True)
class Form:
    """How predictions are made and kept.

    Attributes:
        batch: images of a pass. best_classes: classes whose scores a query keeps; 0: all. dtype: of a folder's numbers.
        score: lowest in a .json file.
    """

    batch: int = 8
    best_classes: int = 0
    dtype: str = "float32"
    score: float = LEAST


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
    form = Form(arguments.batch, arguments.best_classes, arguments.dtype, score)
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


def load_sets(cfg: CfgNode, names: Sequence[str]) -> list[dict]:
    """The images of registered sets, whose labels are not looked at."""
    register_configured(cfg)
    check_registered(names, "--dataset")
    return [record for name in names for record in load_images(name, "--dataset")]


def write_predictions(
    cfg: CfgNode,
    weights: str,
    names: Sequence[str],
    records: Sequence[dict],
    output: Path,
    form: Form | None = None,
    follow: Callable[[TestLoader, str], Iterable] = lambda loader, _: loader,
) -> str:
    """Writes the predictions, or goes on with what a stopped call has left.

    Args:
        cfg: of the detector. weights: see :func:`load_predictor`. names: of the sets or folders. records: their images,
            in detectron2's dataset format.
        output: a folder, or a file that ends in .json. follow: shows progress, given the batches of a part and a title.

    Returns:
        A line that says where they are.

    Raises:
        DetrDistillError: see :func:`run`.
    """
    form = form or Form()
    predictor = load_predictor(cfg, weights)
    folder = output.with_name(f"{output.name}.parts") if output.suffix == ".json" else output
    categories = None
    if folder != output:
        check_ids(records)
        categories = find_categories(cfg, [name for name in names if name in DatasetCatalog], predictor.class_names)
    images = read_images(records)
    described = begin_store(folder, _describe(cfg, names, records, predictor, form, hash_images(images)))
    for number in missing_parts(folder, described):
        part = records[number * PART_IMAGES : (number + 1) * PART_IMAGES]
        loader = TestLoader(part, DetrDatasetMapper(cfg, is_train=False), form.batch, cfg.DATALOADER.NUM_WORKERS)
        title = f"part {number + 1} of {described.parts}"
        batches = [_predict(predictor, batch, described) for batch in follow(loader, title)]
        values = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        stored = images[number * PART_IMAGES : (number + 1) * PART_IMAGES]
        write_part(folder, number, described, stored, values)
    if categories is None:
        return f"{output}: {described.images} images, {described.layers} layers, {described.queries} queries"
    results = list(coco_results(PredictionStore(folder), records, categories, form.score))
    write_atomically(output, lambda file: file.write(json.dumps(results).encode()))
    shutil.rmtree(folder)
    return f"{output}: {len(results)} detections in {described.images} images. {categories.said}".rstrip()


def _describe(
    cfg: CfgNode, names: Sequence[str], records: Sequence[dict], predictor: Predictor, form: Form, dataset: str
) -> Description:
    """What the parts will have in common; one image is looked at to know the shapes."""
    known = predictor.know([DetrDatasetMapper(cfg, is_train=False)(records[0])])
    assert known.output is not None
    layers, _, queries, width = known.output.logits.shape
    if form.best_classes >= width:
        raise ConfigError(f"--best-classes is {form.best_classes}, and there are {width}. Leave it out for all.")
    return Description(
        class_names=predictor.class_names,
        # The best classes are told from the others by probability, of which "no object" of a softmax has its part.
        activation="sigmoid" if form.best_classes else known.output.activation,
        layers=layers,
        queries=queries if known.counts is None else max(queries, cfg.TEST.DETECTIONS_PER_IMAGE),
        best_classes=form.best_classes,
        dtype=form.dtype,
        images=len(records),
        part_images=PART_IMAGES,
        data=tuple(names),
        teacher=predictor.weights_hash,
        dataset=dataset,
        settings=predictor.settings,
    )


@torch.inference_mode()
def _predict(predictor: Predictor, batch: list[dict], described: Description) -> dict[str, Tensor]:
    """One batch in the form of :func:`write_part`."""
    known = predictor.know(batch)
    assert known.output is not None
    output = known.output
    logits = output.score_logits() if described.best_classes else output.logits.float()
    missing = described.queries - logits.shape[2]
    return {
        "counts": torch.tensor(known.counts or [logits.shape[2]] * len(batch)),
        "logits": F.pad(logits.cpu(), (0, 0, 0, missing), value=NOTHING).transpose(0, 1),
        "boxes": F.pad(output.boxes.float().cpu(), (0, 0, 0, missing), value=0.5).transpose(0, 1),
    }


if __name__ == "__main__":
    main()
