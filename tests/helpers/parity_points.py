"""Models of transformers whose points reach the image's border, as other sources hold them there; and their losses."""

from __future__ import annotations

import functools
import sys

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings

import torch
import transformers


@torch.no_grad()
def spread_points(reference, deviation: float = 10.0) -> None:
    """Spreads the points or boxes that queries start from: their logits get this standard deviation.

    Of ordinary random networks all lie around the image's centre, where no limit of a logit is ever reached.
    """
    model, generator = reference.model, torch.Generator().manual_seed(6)
    if isinstance(reference, transformers.DabDetrForObjectDetection):
        weight = model.query_refpoint_embeddings.weight
        weight.copy_(deviation * torch.randn(weight.shape, generator=generator))
    elif isinstance(reference, transformers.ConditionalDetrForObjectDetection):
        head = model.decoder.ref_point_head
        made = head(model.query_position_embeddings.weight)
        head.layers[-1].weight *= deviation / made.std()
    elif reference.config.two_stage:
        reference.bbox_embed[-1].layers[-1].weight *= 3 * deviation
    else:
        position, _ = model.query_position_embeddings.weight.chunk(2, dim=1)
        model.reference_points.weight *= deviation / model.reference_points(position).std()


def use_epsilon(monkeypatch, reference, epsilon: float) -> None:
    """Lets a model of transformers keep boxes as far from 0 and 1 as another source does before it takes a logit."""
    module = sys.modules[type(reference).__module__]
    monkeypatch.setattr(module, "inverse_sigmoid", functools.partial(module.inverse_sigmoid, eps=epsilon))


def published_logit(values: torch.Tensor, epsilon: float) -> torch.Tensor:
    """As all sources take it: each of two sides is held, not the value itself."""
    return (values.clamp(min=epsilon) / (1 - values).clamp(min=epsilon)).log()


def near_the_border(points: torch.Tensor, epsilon: float) -> bool:
    """Whether any lies where the limit of a logit counts."""
    return bool(((points < epsilon) | (points > 1 - epsilon)).any())


def labels_of(inputs) -> list[dict]:
    """detectron2's objects as transformers takes them: boxes as centre and size over the image."""
    labels = []
    for entry in inputs:
        height, width = entry["image"].shape[-2:]
        x1, y1, x2, y2 = (entry["instances"].gt_boxes.tensor / torch.tensor([width, height, width, height])).unbind(-1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)
        labels.append({"class_labels": entry["instances"].gt_classes, "boxes": boxes})
    return labels


def assert_same_losses(model, inputs, finished, reference, logits: torch.Tensor, boxes: torch.Tensor) -> None:
    """Our losses of a batch, without their weights, are those of transformers for its own outputs of all layers."""
    reference.config.auxiliary_loss = True
    _, expected, _ = reference.loss_function(
        logits[-1], labels_of(inputs), logits.device, boxes[-1], reference.config, logits, boxes
    )
    matchings, truth = Matchings(), read_ground_truth(inputs, model.device)
    entries = model.supervise(finished, truth, matchings)
    matchings.solve()
    losses, criterion = model.losses(entries), model.criterion
    weights = {"class": criterion.class_weight, "box": criterion.l1_weight, "giou": criterion.giou_weight}
    theirs = {"class": "ce", "box": "bbox", "giou": "giou"}
    compared = [name for name in losses if "encoder" not in name]
    assert len(compared) == 3 * model.decoder.num_layers
    for name in compared:
        _, kind, *layer = name.split("_")
        found, wanted = losses[name] / weights[kind], expected["_".join(["loss", theirs[kind], *layer])]
        assert abs(found - wanted) < 1e-4 * max(1, abs(wanted)), (name, found, wanted)
