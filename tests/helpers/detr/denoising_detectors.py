"""Small detectors with denoising queries, what begins their steps, and the groups made for given objects."""

from __future__ import annotations

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.structures import GroundTruth, Memory, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.detr.deformable_detectors import LEVELS
from helpers.steps import encode

DN = {
    "MODEL__DETR__DECODER__NAME": "DabDecoder",
    "MODEL__DETR__QUERIES__NAME": "UnknownLabelQueries",
    "MODEL__DETR__TRAINING_GROUPS": ["DenoisingQueries"],
    "MODEL__DETR__DENOISING__NUM_GROUPS": 3,
}
DN_DEFORMABLE = {
    **DN,
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DabDeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "MarkedAnchorQueries",
}
DINO = {
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DinoDecoder",
    "MODEL__DETR__QUERIES__NAME": "MixedQueries",
    "MODEL__DETR__TRAINING_GROUPS": ["ContrastiveDenoisingQueries"],
    "MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS": 9,
}
VARIANTS = {"dn": DN, "dn_deformable": DN_DEFORMABLE, "dino": DINO}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
QUIET = {
    f"MODEL__DETR__{node}__{key}": 0.0
    for node in ("DENOISING", "CONTRASTIVE_DENOISING")
    for key in ("LABEL_NOISE", "BOX_NOISE")
}


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], **keys})))


def begin_step(model, inputs) -> tuple[Memory, GroundTruth, list[QueryGroup]]:
    """Memory, ground truth and all query groups of a training step."""
    memory, targets = encode(model, inputs), read_ground_truth(inputs, model.device)
    return memory, targets, model.query_groups(memory, targets)


def decode(model, inputs, capture=frozenset()):
    """Memory, the detector's own queries and their output."""
    memory = encode(model, inputs)
    own = model.queries(memory)
    return memory, own, model.decode(memory, [own], capture)["own"]


def make_targets(*images: list[list[float]], classes: int = 5) -> GroundTruth:
    """Boxes of each image; labels count up from 0."""
    counts = [len(boxes) for boxes in images]
    most = max(counts)
    boxes = torch.zeros(len(images), most, 4)
    for index, rows in enumerate(images):
        if rows:
            boxes[index, : len(rows)] = torch.tensor(rows)
    valid = torch.arange(most) < torch.tensor(counts)[:, None]
    return GroundTruth(torch.arange(most).expand(len(images), -1) % classes * valid, boxes, valid, counts)


def own_group(images: int, width: int = 8) -> QueryGroup:
    return QueryGroup("own", torch.zeros(images, 3, width), torch.zeros(images, 3, 4))


def make_group(name: str, targets: GroundTruth, **keys) -> QueryGroup:
    """The group that a maker of small width makes for some targets."""
    model = build_model(small_cfg(**{**(DINO if name.startswith("Contrastive") else DN), **keys}))
    maker, images = model.training_groups[name], len(targets.counts)
    (group,) = maker(None, own_group(images, model.queries.widths[0]), targets)
    return group
