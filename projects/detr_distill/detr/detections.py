"""From a decoder's output to detections in the pixels of the original images."""

from __future__ import annotations

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..structures import DecoderOutput
from .boxes import to_corners


@torch.no_grad()
def read_detections(
    output: DecoderOutput, sizes: list[tuple[int, int]], batched_inputs: list[dict], most: int
) -> list[dict]:
    """The last layer's best boxes, in pixels of the original images.

    Args:
        sizes: (height, width) of each image before padding. batched_inputs: detectron2 dicts. most: boxes an image.
    """
    scores, classes, query = best_predictions(output.probabilities()[-1], output.activation, most)
    boxes = to_corners(output.boxes[-1].float())
    boxes = boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    results = []
    for image, (size, inputs) in enumerate(zip(sizes, batched_inputs, strict=True)):
        scale = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        instances = Instances(size, pred_boxes=Boxes(boxes[image] * scale))
        instances.scores, instances.pred_classes = scores[image], classes[image]
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        results.append({"instances": detector_postprocess(instances, height, width)})
    return results


def best_predictions(probabilities: Tensor, activation: str, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes and queries (B, N) of the best predictions, best first.

    With a softmax head each query gives its best class (2005.12872) [C]; with a sigmoid head the best (query, class)
    pairs are taken (2108.06152) [C].

    Args:
        probabilities: (B, Q, K). activation: "softmax" or "sigmoid".
    """
    if activation == "softmax":
        best, classes = probabilities.max(-1)
        scores, query = best.topk(min(most, best.shape[1]))
        return scores, classes.gather(1, query), query
    num_classes = probabilities.shape[-1]
    flat = probabilities.flatten(1)
    scores, index = flat.topk(min(most, flat.shape[1]))
    return scores, index % num_classes, index // num_classes
