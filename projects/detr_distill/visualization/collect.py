"""Runs detectors on a few images and gathers what is drawn: detections, matched queries, attention maps.

Everything leaves here as NumPy arrays with boxes in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode
from torch import nn
from torchvision.ops import nms

from ..data import DetrDatasetMapper, read_image, training_class_names
from ..detr import DetrDetector
from ..detr.boxes import to_corners
from ..detr.supervision.assignment import solve_assignments
from ..distill import DistillDetector
from ..distill.knowledge import Knowledge
from ..distill.matchers.adaptive import AdaptiveMatcher
from ..distill.students.base import StudentOutput
from ..distill.teachers.configuration import load_teacher_config, teacher_class_names
from ..structures import CROSS_ATTENTION, DecoderOutput

DUPLICATE_IOU = 0.5  # of two teacher queries on one object, the surer one is shown


@dataclass
class Objects:
    """Boxes of one image.

    Attributes:
        boxes_xyxy: (N, 4) pixels of the original image. labels: N class names.
        scores: (N,) in [0, 1]; None for ground truth.
    """

    boxes_xyxy: np.ndarray
    labels: list[str]
    scores: np.ndarray | None = None


@dataclass
class Sample:
    """An image to draw on.

    Attributes:
        image: (height, width, 3) uint8, RGB, as it is in its file. entry: what a detector takes.
        truth: its ground truth; None when unknown.
    """

    image: np.ndarray
    entry: dict
    truth: Objects | None = None


@dataclass
class View:
    """A detector under the name by which it is shown.

    Attributes:
        classes: its class names. flip_channels: it expects the other channel order than the samples have.
    """

    name: str
    detector: nn.Module
    classes: Sequence[str]
    flip_channels: bool = False


@dataclass
class Query:
    """What one query of the last decoder layer sees and says.

    Attributes:
        box_xyxy: (4,) pixels of the original image. label, score: its most probable class.
        attention: (h, w) cross-attention, mean over heads, sums to 1; None unless captured.
        span: (width, height) that the map covers, in pixels of the original image; padding included.
    """

    box_xyxy: np.ndarray
    label: str
    score: float
    attention: np.ndarray | None = None
    span: tuple[float, float] = (0.0, 0.0)


def load_samples(cfg: CfgNode, records: Sequence[dict]) -> list[Sample]:
    """Images of dataset records, or of bare ``{"file_name": ...}``, resized for a detector as in its evaluation.

    Raises:
        DataError: an image cannot be read.
    """
    mapper, classes = DetrDatasetMapper(cfg, is_train=False), training_class_names(cfg) or ()
    return [
        Sample(read_image(record["file_name"], "RGB"), mapper(dict(record)), _truth(record, classes))
        for record in records
    ]


def _truth(record: dict, classes: Sequence[str]) -> Objects | None:
    if "annotations" not in record:
        return None
    objects = [item for item in record["annotations"] if not item.get("iscrowd", 0)]
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    labels = [_name(classes, item["category_id"]) for item in objects]
    return Objects(np.array(boxes, dtype=np.float64).reshape(-1, 4), labels)


def _name(classes: Sequence[str], index: int) -> str:
    return classes[index] if index < len(classes) else str(index)


def views_of(cfg: CfgNode, model: nn.Module) -> list[View]:
    """The detectors of a model: student and teacher (where it has one) of a distilling model, else the model itself."""
    names = training_class_names(cfg) or ()
    if not isinstance(model, DistillDetector):
        return [View("detector", model, names)]
    student, network = View("student", model.student, names), model.teacher.detector
    if network is None:
        return [student]
    node = cfg.MODEL.DISTILL.TEACHER
    # A teacher without a configuration of its own is a network of the student's kind.
    teacher_cfg = load_teacher_config(cfg) if node.CONFIG_FILE else cfg
    taught = teacher_class_names(cfg, teacher_cfg)[0] or ()
    return [student, View("teacher", network, taught, model.teacher.flip_channels)]


def detect(view: View, sample: Sample, threshold: float) -> Objects:
    """Detections whose score is at least ``threshold``, best first."""
    with inference_context(view.detector), torch.no_grad():
        found = view.detector([_entry(view, sample)])[0]["instances"].to("cpu")
    found = found[found.scores >= threshold]
    labels = [_name(view.classes, index) for index in found.pred_classes.tolist()]
    return Objects(found.pred_boxes.tensor.numpy(), labels, found.scores.numpy())


def collect_pairs(
    sample: Sample, teacher: View, students: Sequence[View], matcher: AdaptiveMatcher, threshold: float, most: int
) -> list[dict[str, Query]]:
    """The surest teacher queries of an image with the student queries that the matcher pairs them with, last layer.

    Args:
        threshold: lowest class probability of a teacher query. most: number of queries at most.

    Returns:
        For each teacher query, surest first: {view name: its query}; a student without a partner is left out.
    """
    decoded = {view.name: _decode(view, sample) for view in (teacher, *students)}
    partners = {view.name: _match(decoded[view.name][0], decoded[teacher.name][0], matcher) for view in students}
    rows = []
    for index in _sure_queries(decoded[teacher.name][0], threshold)[:most]:
        row = {teacher.name: _query(teacher, sample, *decoded[teacher.name], index)}
        for view in students:
            if index in partners[view.name]:
                row[view.name] = _query(view, sample, *decoded[view.name], partners[view.name][index])
        rows.append(row)
    return rows


def has_attention_maps(detector: nn.Module) -> bool:
    """Whether a detector has a decoder that can keep its cross-attention as maps."""
    return isinstance(detector, DetrDetector) and CROSS_ATTENTION in detector.decoder.captures


def _entry(view: View, sample: Sample) -> dict:
    if not view.flip_channels:
        return sample.entry
    return {**sample.entry, "image": sample.entry["image"].flip(0)}


def _decode(view: View, sample: Sample) -> tuple[DecoderOutput, tuple[int, int], tuple[float, float]]:
    """Decoder output, (height, width) of the memory, and its ``Query.span``."""
    detector = view.detector
    assert isinstance(detector, DetrDetector)
    with inference_context(detector), torch.no_grad():
        started = detector.start([_entry(view, sample)])
        capture = frozenset({CROSS_ATTENTION}) & detector.decoder.captures
        output = detector.finish(started, capture=capture).outputs["own"]
    images, memory = started.images, started.memory
    (height, width), (full_height, full_width) = images.sizes[0], images.tensor.shape[-2:]
    rows, columns = sample.image.shape[:2]
    return output, memory.shapes[0], (columns * full_width / width, rows * full_height / height)


def _match(student: DecoderOutput, teacher: DecoderOutput, matcher: AdaptiveMatcher) -> dict[int, int]:
    """Teacher query -> student query on the last layer."""
    cost = matcher.cost(StudentOutput({}, {"own": student}), Knowledge(output=teacher))
    (pairs,) = solve_assignments([cost])
    return dict(zip(pairs.target[-1, 0].tolist(), pairs.query[-1, 0].tolist(), strict=True))


def _sure_queries(output: DecoderOutput, threshold: float) -> list[int]:
    scores = output.probabilities()[-1, 0].max(-1).values
    kept = nms(to_corners(output.boxes[-1, 0].float()), scores, DUPLICATE_IOU)
    return [index for index in kept.tolist() if scores[index] >= threshold]


def _query(
    view: View, sample: Sample, output: DecoderOutput, shape: tuple[int, int], span: tuple[float, float], index: int
) -> Query:
    score, label = output.probabilities()[-1, 0, index].max(-1)
    height, width = sample.image.shape[:2]
    box = to_corners(output.boxes[-1, 0, index].float()).cpu().numpy() * [width, height, width, height]
    attention = None
    if output.cross_attention is not None:
        attention = output.cross_attention[-1][0, :, index].float().mean(0).view(shape).cpu().numpy()
    return Query(box, _name(view.classes, int(label)), float(score), attention, span)
