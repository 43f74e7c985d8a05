"""A convolutional detector's training predictions in the form of a decoder's output: one query an anchor or a region.

So matchers and losses of queries apply to them. That a softmax head's last column is "no object" is so for both kinds.

Letters: B images, R anchors or regions an image (padded), N of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..detr.boxes import to_centres
from ..errors import ConfigError
from ..structures import DecoderOutput, one_layer
from ..structures.transfer import copy_to


def dense_output(
    detector: DenseDetector, predictions: list[list[Tensor]], features: list[Tensor], images: ImageList
) -> DecoderOutput:
    """What RetinaNet or FCOS says at every anchor; of FCOS without its centre-ness, which no other detector has [R].

    Args:
        predictions: of the head: class logits and box deltas of each level. features: that it read.
    """
    split = detector._transpose_dense_predictions(predictions[:2], [detector.num_classes, 4])
    logits, deltas = (torch.cat(levels, dim=1) for levels in split)
    anchors: Any = detector.anchor_generator(features)
    corners = Boxes.cat(anchors).tensor.repeat(len(logits), 1)
    transform: Any = detector.box2box_transform
    boxes = transform.apply_deltas(deltas.flatten(0, 1).float(), corners).view(deltas.shape)
    size = copy_to(torch.tensor([[width, height] * 2 for height, width in images.image_sizes]), boxes.device)
    return one_layer(logits, to_centres(boxes / size[:, None]), "sigmoid")


def region_output(
    predictor: FastRCNNOutputLayers, scores: Tensor, deltas: Tensor, regions: list[Instances]
) -> DecoderOutput:
    """What Fast R-CNN's head says of the regions that it was trained on in this step, as a decoder output.

    Where it has a box for every class, that of its own best class is taken [R].

    Args:
        scores: (N, K + 1) and deltas: (N, 4) or (N, 4 K), of all images' regions.
        regions: of each image, with ``proposal_boxes``.
    """
    deltas = deltas.float().unflatten(1, (-1, 4))
    if deltas.shape[1] > 1:
        best = scores[:, :-1].argmax(1)
        deltas = deltas.gather(1, best[:, None, None].expand(-1, 1, 4))
    corners = torch.cat([image.proposal_boxes.tensor for image in regions])
    boxes = predictor.box2box_transform.apply_deltas(deltas.squeeze(1), corners)
    counts = [len(image) for image in regions]
    sizes = [boxes.new_tensor([image.image_size[1], image.image_size[0]] * 2) for image in regions]
    boxes = [to_centres(values / size) for values, size in zip(boxes.split(counts), sizes, strict=True)]
    sigmoid = getattr(predictor, "use_sigmoid_ce", False)  # of later detectron2
    logits = pad_sequence((scores[:, :-1] if sigmoid else scores).split(counts), batch_first=True)
    return one_layer(logits, pad_sequence(boxes, batch_first=True), "sigmoid" if sigmoid else "softmax")


@contextmanager
def listening(heads: nn.Module, wanted: bool) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within, what the heads' box predictor gives is kept; their forward hands out losses alone.

    Raises:
        ConfigError: the heads predict in several stages, or change their regions.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    if not wanted:
        yield kept
        return
    predictor = getattr(heads, "box_predictor", None)
    if not isinstance(predictor, FastRCNNOutputLayers) or getattr(heads, "train_on_pred_boxes", False):
        raise ConfigError(
            f"MODEL.DISTILL.MATCHERS: predictions of a student's {type(heads).__name__} cannot be matched. Take "
            "StandardROIHeads or Res5ROIHeads without MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES, or set MATCHERS to ()."
        )
    handle = predictor.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
