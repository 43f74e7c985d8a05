"""Writes what a trained detector predicts on a data set: a teacher that costs nothing in the training step.

The detector is this package's (``--config-file configs/digits/conditional_teacher.yaml --weights
weights/digits_teacher.pth``) or a folder of transformers (``--weights /models/rtdetr``, with a configuration that names
the data).

An output that ends in .json is COCO's results format, of the last layer; any other is a folder that holds every layer
and query. What a stopped call has left is gone on with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
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
from ..data import DetrDatasetMapper, TestLoader, read_configuration, register_configured
from ..data.formats import image_records
from ..data.predictions.description import DESCRIPTION, Description, hash_images, read_images
from ..data.predictions.maps import StoredMap, cut_maps
from ..data.predictions.store import DTYPES, NOTHING, PredictionStore, begin_store, missing_parts, write_part
from ..data.records import check_registered, load_images
from ..engine.device import choose_device
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..errors import ConfigError
from .predictor import Predictor, load_predictor
from .results_format import check_ids, coco_results, find_categories

PART_IMAGES = 1000
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


@dataclass(frozen=True)
class Form:
    """How predictions are made and kept.

    Attributes:
        batch: images of a pass. best_classes: classes whose scores a query keeps; 0: all. dtype: of a folder's numbers.
        score: lowest in a .json file. maps: names of the detector's maps that a folder keeps too.
    """

    batch: int = 8
    best_classes: int = 0
    dtype: str = "float32"
    score: float = 0.05
    maps: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = argument_parser().parse_args(argv)
    with report_user_errors():
        print(run(arguments))


def argument_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="the detector's configuration; with a "
        "folder of transformers one that names the data, INPUT.FORMAT and the size of the images",
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint, or a folder of transformers")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="default: DATASETS.TRAIN")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images, or folders of them, in place of a data set"
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="a folder, or a file that ends in .json")
    parser.add_argument("--batch", type=int, default=8, help="images of a pass (default 8)")
    parser.add_argument(
        "--best-classes",
        type=int,
        default=0,
        metavar="K",
        help="of each query keep the scores of the best K classes; 0, the default: all",
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the numbers in a folder")
    parser.add_argument(
        "--maps",
        nargs="+",
        default=[],
        metavar="NAME",
        help="maps that a folder keeps too, for losses on maps: level0 is the finest that the head reads, memory0 what "
        "the encoder makes of it; a wrong name lists them",
    )
    parser.add_argument("--score", type=float, default=0.05, help="lowest score in a .json file (default 0.05)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Writes the predictions; returns a line that says where they are.

    Raises:
        DetrDistillError: a configuration, checkpoint, data set or output that cannot be used.
    """
    arguments.dataset, arguments.opts = keys_apart(arguments.dataset, arguments.opts)
    arguments.images, arguments.opts = keys_apart(arguments.images, arguments.opts)
    arguments.maps, arguments.opts = keys_apart(arguments.maps, arguments.opts)
    if arguments.batch < 1 or arguments.best_classes < 0:
        raise ConfigError(
            f"--batch is {arguments.batch} and --best-classes {arguments.best_classes}; the first is 1 or more, the "
            "second 0 or more."
        )
    if not 0 <= arguments.score <= 1:
        raise ConfigError(f"--score is {arguments.score}; a score is a probability from 0 to 1.")
    output = Path(arguments.output)
    check_output(output)
    if arguments.maps and output.suffix == ".json":
        raise ConfigError(f"--maps: {output} is a JSON of detections, which holds none. Let --output name a folder.")
    cfg = read_configuration(arguments.config_file, arguments.opts, plugins=True, weights=arguments.weights)
    choose_device(cfg, argparse.Namespace(num_gpus=int(torch.cuda.is_available()), num_machines=1))
    cfg.freeze()
    prepare_datasets(cfg)
    if arguments.images and arguments.dataset:
        raise ConfigError("--images and --dataset are both given. Name a data set, or images.")
    names = tuple(arguments.images or arguments.dataset or cfg.DATASETS.TRAIN)
    load = image_records(*names, key="--images") if arguments.images else load_sets(cfg, names)
    form = Form(arguments.batch, arguments.best_classes, arguments.dtype, arguments.score, tuple(arguments.maps))
    return write_predictions(cfg, arguments.weights, names, load, output, form, track)


def keys_apart(words: Sequence[str], opts: Sequence[str]) -> tuple[list[str], list[str]]:
    """An option's own words, and KEY VALUE with what an option of several words has taken of them."""
    own = list(itertools.takewhile(lambda word: not KEY.fullmatch(word), words))
    return own, [*words[len(own) :], *opts]


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
        part = records[number * described.part_images : (number + 1) * described.part_images]
        loader = TestLoader(part, DetrDatasetMapper(cfg, is_train=False), form.batch, cfg.DATALOADER.NUM_WORKERS)
        title = f"part {number + 1} of {described.parts}"
        batches = [_predict(predictor, batch, described) for batch in follow(loader, title)]
        values = {name: torch.cat([batch[name] for batch, _ in batches]) for name in batches[0][0]}
        maps = {name: [each for _, found in batches for each in found[name]] for name in described.maps}
        stored = images[number * described.part_images : (number + 1) * described.part_images]
        write_part(folder, number, described, stored, values, maps)
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
    unknown = [name for name in form.maps if name not in known.maps]
    if unknown:
        raise ConfigError(f"--maps names {', '.join(unknown)}; this detector has {', '.join(known.maps)}.")
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
        part_images=PART_IMAGES // 10 if form.maps else PART_IMAGES,  # a part is put together in memory
        data=tuple(names),
        teacher=predictor.weights_hash,
        dataset=dataset,
        settings=predictor.settings,
        maps={name: known.maps[name].shape[1] for name in form.maps},
    )


@torch.inference_mode()
def _predict(
    predictor: Predictor, batch: list[dict], described: Description
) -> tuple[dict[str, Tensor], dict[str, list[StoredMap]]]:
    """One batch in the form of :func:`write_part`."""
    known = predictor.know(batch)
    assert known.output is not None
    output = known.output
    logits = output.score_logits() if described.best_classes else output.logits.float()
    missing = described.queries - logits.shape[2]
    sizes = [(entry["image"].shape[-2], entry["image"].shape[-1]) for entry in batch]
    maps = {name: cut_maps(known.maps[name].to("cpu", DTYPES[described.dtype]), sizes) for name in described.maps}
    return {
        "counts": torch.tensor(known.counts or [logits.shape[2]] * len(batch)),
        "logits": F.pad(logits.cpu(), (0, 0, 0, missing), value=NOTHING).transpose(0, 1),
        "boxes": F.pad(output.boxes.float().cpu(), (0, 0, 0, missing), value=0.5).transpose(0, 1),
    }, maps


if __name__ == "__main__":
    main()
