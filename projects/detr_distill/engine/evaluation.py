"""COCO evaluation of boxes, with the fast C++ implementation where it is installed."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import math
import os

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..checkpoint.writing import write_atomically
from ..data.annotations.file import AnnotationFile, id_order, read_annotation_file
from ..data.annotations.masks import mask_area
from ..errors import ConfigError, DataError, first

try:
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster
except ImportError:
    FastCOCO = COCOeval_faster = None


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Evaluator of a registered dataset; its files go to ``OUTPUT_DIR/inference/NAME``.

    Raises:
        ConfigError: the dataset is not in COCO format.
    """
    check_evaluator(dataset_name)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name.replace(os.sep, "_"))
    return BoxEvaluator(dataset_name, output_dir=folder)


def check_evaluator(dataset_name: str) -> None:
    """Raises ConfigError where a registered dataset is not in COCO format."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind != "coco":
        raise ConfigError(
            f'DATASETS.TEST: "{dataset_name}" has evaluator type "{kind}", only "coco" is supported. '
            "Register the set in COCO format with DATASETS.REGISTER."
        )


class BoxEvaluator(COCOEvaluator):
    """detectron2's COCO evaluator for boxes only; no predictions at all is AP 0, not an undefined number.

    Its ground truth is what the project's reader makes of the annotation file.

    Args:
        fast: use ``faster_coco_eval`` (the same 12 numbers); None: when it is installed.

    Raises:
        DataError: the annotation file cannot be used.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, fast: bool | None = None):
        # Not the base class's constructor: it reads the annotation file itself, as it is.
        self._logger = logging.getLogger(__name__)
        self._distributed = True
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        file = read_annotation_file(_annotation_path(dataset_name, output_dir))
        self._do_evaluation = file.annotated
        self._dataset = ground_truth(file)
        self._fast = COCOeval_faster is not None if fast is None else fast

    def _eval_box_proposals(self, predictions: list[dict]) -> None:
        self._coco_api = _index(COCO, self._dataset)
        super()._eval_box_proposals(predictions)

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        self._restore_category_ids(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_atomically(path, lambda file: file.write(json.dumps(results).encode()))
        if not self._do_evaluation:
            self._logger.info("%s has no annotations: predictions are written, not evaluated.", self._metadata.name)
            return
        evaluation = evaluate_boxes(self._dataset, results, fast=self._fast, image_ids=img_ids)
        names = self._metadata.get("thing_classes")
        self._results["bbox"] = self._derive_coco_results(evaluation, "bbox", class_names=names)

    def _restore_category_ids(self, results: list[dict]) -> None:
        """Turns class indices into the category ids of the annotation file, in place."""
        index_of_id = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if index_of_id is None:
            return
        id_of_index = {index: category for category, index in index_of_id.items()}
        for result in results:
            if result["category_id"] not in id_of_index:
                raise ConfigError(
                    f"The model predicts class {result['category_id']} and {self._metadata.name} has "
                    f"{len(id_of_index)} classes. Set the model's NUM_CLASSES key to {len(id_of_index)}."
                )
            result["category_id"] = id_of_index[result["category_id"]]


def _annotation_path(dataset_name: str, output_dir: str | None) -> str:
    """The annotation file of a set; of one that is no file, one that is written from its records."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("json_file") is None:
        if output_dir is None:
            raise ConfigError(f"{dataset_name} has no annotation file; name a folder to write one to.")
        metadata.json_file = os.path.join(output_dir, f"{dataset_name.replace(os.sep, '_')}_coco_format.json")
        convert_to_coco_json(dataset_name, metadata.json_file)
    return metadata.json_file


def ground_truth(file: AnnotationFile) -> dict:
    """An annotation file's content as evaluation needs it: every annotation with an area, nothing that is not read.

    An area that the file does not tell is the mask's, as COCO measures it, or the box's where there is no mask.
    """
    keys = ("id", "image_id", "category_id", "iscrowd", "bbox")
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    annotations = []
    for item, area in zip(file.annotations, file.areas.tolist(), strict=True):
        known = not math.isnan(area)
        mask = None if known else mask_area(item.get("segmentation"), *sizes[item["image_id"]])
        area = area if known else mask or item["bbox"][2] * item["bbox"][3]
        annotations.append({**{key: item[key] for key in keys}, "area": area})
    return {"images": file.images, "categories": file.categories, "annotations": annotations}


def evaluate_boxes(dataset: dict, results: list[dict], *, fast: bool, image_ids: list | None = None) -> COCOeval:
    """COCO's box metrics.

    Args:
        dataset: an annotation file's content; ids may be of any size, or texts.
        results: COCO result entries, boxes as (x, y, width, height) in pixels.
        fast: by ``faster_coco_eval`` instead of pycocotools. image_ids: evaluate these images only.

    Returns:
        A summarised ``COCOeval``: ``stats`` holds the 12 numbers in [0, 1], -1 where undefined. Its ids are numbers
        from 1 on, in the order of the dataset's.
    """
    numbered, images, categories = _number(dataset)
    unknown = {result["image_id"] for result in results} - images.keys()
    if unknown:
        raise DataError(
            "The predictions are of images that the annotation file does not hold: ids "
            f"{first(sorted(unknown, key=id_order))}. Evaluate on the file that the images come from."
        )
    results = [
        {**result, "image_id": images[result["image_id"]], "category_id": categories[result["category_id"]]}
        for result in results
    ]
    index_class, evaluation_class = (FastCOCO, COCOeval_faster) if fast else (COCO, COCOeval)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(index_class, numbered)
        if results:
            detections = truth.loadRes(copy.deepcopy(results))
        else:
            # pycocotools cannot load an empty list.
            detections = _index(index_class, {**numbered, "annotations": []})
        evaluation = evaluation_class(truth, detections, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = [images[image] for image in image_ids]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _number(dataset: dict) -> tuple[dict, dict, dict]:
    """The dataset with ids from 1 on, and the new ids of images and categories.

    Both libraries take ids through floating point or 64 bits; a match with annotation 0 they count as none. ``area``
    and ``iscrowd`` are often left out.
    """
    new: dict[str, dict] = {}
    for section in ("images", "categories"):
        ids = sorted((item["id"] for item in dataset[section]), key=id_order)
        new[section] = {id: number for number, id in enumerate(ids, 1)}
    images, categories = new["images"], new["categories"]
    annotations = [
        {
            "area": item["bbox"][2] * item["bbox"][3],
            "iscrowd": 0,
            **item,
            "id": number,
            "image_id": images[item["image_id"]],
            "category_id": categories[item["category_id"]],
        }
        for number, item in enumerate(dataset["annotations"], 1)
    ]
    numbered = {
        "images": [{**item, "id": images[item["id"]]} for item in dataset["images"]],
        "categories": [{**item, "id": categories[item["id"]]} for item in dataset["categories"]],
        "annotations": annotations,
    }
    return numbered, images, categories


def _index(index_class: type[COCO], dataset: dict) -> COCO:
    index = index_class()
    index.dataset = dataset
    index.createIndex()
    return index
