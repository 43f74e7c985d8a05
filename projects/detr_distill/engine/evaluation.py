"""COCO evaluation of boxes, with the fast C++ implementation where it is installed."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..checkpoint.writing import write_atomically
from ..errors import ConfigError

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

    Args:
        fast: use ``faster_coco_eval`` (the same 12 numbers); None: when it is installed.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, fast: bool | None = None):
        super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir, use_fast_impl=False)
        self._fast = COCOeval_faster is not None if fast is None else fast

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        self._restore_category_ids(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_atomically(path, lambda file: file.write(json.dumps(results).encode()))
        if not self._do_evaluation:
            self._logger.info("%s has no annotations: predictions are written, not evaluated.", self._metadata.name)
            return
        evaluation = evaluate_boxes(self._coco_api.dataset, results, fast=self._fast, image_ids=img_ids)
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


def evaluate_boxes(dataset: dict, results: list[dict], *, fast: bool, image_ids: list | None = None) -> COCOeval:
    """COCO's box metrics.

    Args:
        dataset: an annotation file's content. results: COCO result entries, boxes as (x, y, width, height) in pixels.
        fast: by ``faster_coco_eval`` instead of pycocotools. image_ids: evaluate these images only.

    Returns:
        A summarised ``COCOeval``: ``stats`` holds the 12 numbers in [0, 1], -1 where undefined.
    """
    dataset = {**dataset, "annotations": _complete(dataset["annotations"])}
    index_class, evaluation_class = (FastCOCO, COCOeval_faster) if fast else (COCO, COCOeval)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(index_class, dataset)
        if results:
            detections = truth.loadRes(copy.deepcopy(results))
        else:
            # pycocotools cannot load an empty list.
            detections = _index(index_class, {**dataset, "annotations": []})
        evaluation = evaluation_class(truth, detections, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _complete(annotations: list[dict]) -> list[dict]:
    """Annotations as the evaluation wants them.

    It counts a match with annotation 0 as none, and exporters number from 0; ``area`` and ``iscrowd`` are often left
    out.
    """
    defaults = ({"area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for a in annotations)
    return [{**default, **a, "id": n} for n, (default, a) in enumerate(zip(defaults, annotations, strict=True), 1)]


def _index(index_class: type[COCO], dataset: dict) -> COCO:
    index = index_class()
    index.dataset = dataset
    index.createIndex()
    return index
