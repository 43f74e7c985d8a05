"""Writes what a trained detector predicts on images: a folder of every layer and query, or COCO's results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor

from ..checkpoint.files import write_atomically
from ..data import DetrDatasetMapper, TestLoader, register_configured
from ..data.predictions.description import Description, hash_images, read_images
from ..data.predictions.maps import MIRRORED, StoredMap, cut_maps
from ..data.predictions.store import DTYPES, NOTHING, PredictionStore, begin_store, missing_parts, write_part
from ..data.records import check_registered, load_images
from ..errors import ConfigError
from ..options.simple import LEAST
from .predictor import Predictor, load_predictor
from .results_format import check_ids, coco_results, find_categories

PART_IMAGES = 1000


@dataclass(frozen=True)
class Form:
    """How predictions are made and kept.

    Attributes:
        batch: images of a pass. best_classes: classes whose scores a query keeps; 0: all. dtype: of a folder's numbers.
        score: lowest in a .json file. maps: names of the detector's maps that a folder keeps too.
        mirrored: these of every image's mirror image as well.
    """

    batch: int = 8
    best_classes: int = 0
    dtype: str = "float32"
    score: float = LEAST
    maps: tuple[str, ...] = ()
    mirrored: bool = False


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
        maps={
            name + suffix: known.maps[name].shape[1]
            for suffix in ("", *([MIRRORED] if form.mirrored else []))
            for name in form.maps
        },
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
    seen = {"": known.maps}
    if any(name.endswith(MIRRORED) for name in described.maps):
        seen[MIRRORED] = predictor.know([{**entry, "image": entry["image"].flip(-1)} for entry in batch]).maps
    maps = {
        name + suffix: cut_maps(values[name].to("cpu", DTYPES[described.dtype]), sizes)
        for suffix, values in seen.items()
        for name in values
        if name + suffix in described.maps
    }
    return {
        "counts": torch.tensor(known.counts or [logits.shape[2]] * len(batch)),
        "logits": F.pad(logits.cpu(), (0, 0, 0, missing), value=NOTHING).transpose(0, 1),
        "boxes": F.pad(output.boxes.float().cpu(), (0, 0, 0, missing), value=0.5).transpose(0, 1),
    }, maps
