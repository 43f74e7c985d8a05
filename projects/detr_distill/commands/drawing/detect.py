"""A trained detector, or its exported file, as a function of one image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ...data import DetrDatasetMapper
from ...deployment.writing import INPUTS, NAMES_KEY, OUTPUTS
from ...detr.detections import read_detections
from ...errors import CheckpointError, ConfigError
from ...visualization.collect import Objects
from ..predictor import Predictor

# (height, width, 3) uint8 RGB to the detections in it, best first.
Detect = Callable[[np.ndarray], Objects]
STEP = 32  # pixels of which the sides of an exported detector's images are multiples


def from_predictor(cfg: CfgNode, predictor: Predictor, score: float) -> Detect:
    """Of a detector of this package or of transformers; ``score`` is the lowest of a detection."""
    mapper = DetrDatasetMapper(cfg, is_train=False)

    @torch.inference_mode()
    def detect(image: np.ndarray) -> Objects:
        seen = T.AugInput(image if cfg.INPUT.FORMAT == "RGB" else np.ascontiguousarray(image[..., ::-1]))
        mapper.augmentations(seen)
        pixels = torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        entry = {"image": pixels, "height": height, "width": width}
        output = predictor.know([entry]).output
        assert output is not None
        sizes = [(pixels.shape[1], pixels.shape[2])]
        found = read_detections(output, sizes, [entry], cfg.TEST.DETECTIONS_PER_IMAGE)[0]["instances"].to("cpu")
        boxes, scores, labels = (x.numpy() for x in (found.pred_boxes.tensor, found.scores, found.pred_classes))
        return _best(boxes, scores, labels, predictor.class_names, score)

    return detect


def from_onnx(file: Path, resize: T.Augmentation | None, score: float) -> tuple[Detect, tuple[str, ...]]:
    """Of a file that ``detr-distill export`` wrote, and the names of its classes.

    Args:
        resize: brings an image to the size that the detector was trained with; None keeps it.

    Raises:
        ConfigError: onnxruntime is not installed. CheckpointError: the file is another or damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"--weights {file} needs onnxruntime ({error}): pip install 'detr_distill[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(str(file), providers=onnxruntime.get_available_providers())
        names = tuple(json.loads(session.get_modelmeta().custom_metadata_map[NAMES_KEY]))
        shape = {entry.name: entry.shape for entry in session.get_inputs()}[INPUTS[0]]
    except Exception as error:  # the runtime has an error for each way in which a file can be none
        raise CheckpointError(
            f"--weights {file} is no detector that detr-distill export wrote: {str(error)[:200]}. Export it again."
        ) from error
    fixed = (shape[2], shape[3]) if all(isinstance(side, int) for side in shape[2:]) else None

    def detect(image: np.ndarray) -> Objects:
        seen = _fit(image, resize, fixed)
        height, width = seen.shape[:2]
        padded = np.zeros((-(-height // STEP) * STEP, -(-width // STEP) * STEP, 3), np.uint8)
        padded[:height, :width] = seen
        inputs = (padded.transpose(2, 0, 1)[None], np.array([[height, width]], np.int64))
        values = session.run(list(OUTPUTS), dict(zip(INPUTS, inputs, strict=True)))
        boxes, scores, labels = (value[0] for value in values)
        boxes = boxes * np.array([image.shape[1] / width, image.shape[0] / height] * 2)
        return _best(boxes, scores, labels, names, score)

    return detect, names


def _fit(image: np.ndarray, resize: T.Augmentation | None, fixed: tuple[int, int] | None) -> np.ndarray:
    if fixed is not None:
        return cv2.resize(image, fixed[::-1], interpolation=cv2.INTER_LINEAR)
    if resize is None:
        return image
    seen = T.AugInput(image)
    T.AugmentationList([resize])(seen)
    return np.asarray(seen.image)


def _best(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, names: Sequence[str], score: float) -> Objects:
    kept = scores >= score
    return Objects(boxes[kept], [names[label] for label in labels[kept]], scores[kept])
