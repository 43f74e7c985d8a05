"""Small configurations, images, and models for the tests."""

from __future__ import annotations

from pathlib import Path

import detr_distill

import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from torch import nn

ROOT = Path(__file__).parents[2]
SPREAD = 0.15


def small_cfg(**keys):
    """A tiny Conditional DETR on a convolutional backbone, on the CPU; ``keys`` override with ``__`` for ``.``."""
    cfg = get_cfg()
    detr_distill.add_detr_distill_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/digits/Base-digits.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ()
    cfg.MODEL.CONV_BACKBONE.CHANNELS = [8, 8, 8]
    cfg.MODEL.DETR.NUM_CLASSES = 5
    cfg.MODEL.DETR.NUM_QUERIES = 7
    cfg.MODEL.DETR.HIDDEN_DIM = 16
    cfg.MODEL.DETR.NUM_HEADS = 2
    cfg.MODEL.DETR.FFN_DIM = 24
    cfg.MODEL.DETR.ENCODER.NUM_LAYERS = 1
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def randomise(module: torch.nn.Module, seed: int = 0, spread: float = SPREAD) -> torch.nn.Module:
    """Draws every parameter and buffer anew, so that no zero start can hide a mistake.

    Weights are normal around 0 with the standard deviation ``spread``, factors of normalisations are around 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, values in module.state_dict().items():
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator)
            positive = name.endswith("running_var") or (name.endswith("weight") and values.dim() == 1)
            values.copy_(noise.abs() * 0.2 + 0.9 if positive else noise * spread)
    return module


def make_inputs(sizes=((40, 56), (48, 40)), counts=(2, 3), num_classes=5, seed=0, labels=True):
    """detectron2 dicts of random images with random boxes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for index, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        entry = {"image": image, "height": height, "width": width, "image_id": index, "file_name": f"{index}.jpg"}
        if labels:
            corner = torch.rand(count, 2, generator=generator) * 0.5
            size = torch.rand(count, 2, generator=generator) * 0.4 + 0.1
            scale = torch.tensor([width, height, width, height])
            entry["instances"] = Instances(
                (height, width),
                gt_boxes=Boxes(torch.cat([corner, corner + size], dim=1) * scale),
                gt_classes=torch.randint(0, num_classes, (count,), generator=generator),
            )
        inputs.append(entry)
    return inputs


def without_batch_statistics(model):
    """Batch normalisation by its running statistics, so that no image feels another."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model
