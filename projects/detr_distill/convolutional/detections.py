"""What a convolutional detector detects, in the form of a decoder's output.

Letters: B images, D detections an image (padded), K classes.
"""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ..detr.boxes import to_centres
from ..structures import DecoderOutput, one_layer


def detect_dense(detector: DenseDetector, images: ImageList, features: list[Tensor]) -> list[Instances]:
    """Detections of a dense detector after non-maximum suppression, best first, in pixels of ``images``."""
    return detector.forward_inference(images, features, detector.head(features))


def detect_regions(
    detector: GeneralizedRCNN, images: ImageList, features: dict[str, Tensor], batched_inputs: list[dict]
) -> list[Instances]:
    """Detections of a two-stage detector after non-maximum suppression, best first, in pixels of ``images``."""
    if detector.proposal_generator is None:
        proposals = [entry["proposals"].to(detector.device) for entry in batched_inputs]
    else:
        proposals, _ = detector.proposal_generator(images, features, None)
    return detector.roi_heads(images, features, proposals, None)[0]


def as_output(found: list[Instances], num_classes: int) -> DecoderOutput:
    """Detections as one decoder layer of sigmoid scores, (1, B, D, K): the score in the detected class, 0 in others.

    Suppression has chosen by class and says no more of the others [R]. Boxes end at the image's border; one that lies
    beyond has no score. Padding is the whole image without a score.

    Args:
        found: of each image, with ``pred_boxes``, ``scores`` and ``pred_classes``. num_classes: K.
    """
    most = max(1, *(len(instances) for instances in found))
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0], device=found[0].scores.device)
    boxes = whole.repeat(len(found), most, 1)
    scores = boxes.new_zeros(len(found), most, num_classes)
    for image, instances in enumerate(found):
        (height, width), count = instances.image_size, len(instances)
        corners = (instances.pred_boxes.tensor.float() / boxes.new_tensor([width, height] * 2)).clamp(0, 1)
        inside = ((corners[:, 2:] - corners[:, :2]) > 0).all(-1)
        boxes[image, :count] = to_centres(corners)
        scores[image, :count].scatter_(1, instances.pred_classes[:, None], (instances.scores * inside)[:, None].float())
    return one_layer(torch.logit(scores, eps=1e-6), boxes, "sigmoid")
