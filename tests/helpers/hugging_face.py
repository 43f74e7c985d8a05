"""Tiny detectors of transformers, as configurations and as folders."""

from __future__ import annotations

import json

import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.make_golden import teachers_without_weights

LAYERS, SIZE = 3, 64
RESNET = {
    "model_type": "rt_detr_resnet", "embedding_size": 12, "hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_indices": [2, 3, 4],
}  # fmt: skip
SMALL = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "d_model": 32, "num_queries": 9, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 48,
    "decoder_layers": LAYERS, "decoder_attention_heads": 4, "num_denoising": 12, "backbone_config": RESNET,
}  # fmt: skip
STRETCHED = {"do_resize": True, "size": {"height": SIZE, "width": SIZE}, "do_normalize": False}
KINDS = ["rt_detr", "rt_detr_v2", "d_fine", "deimv2"]
CLASSES = 5


def small_settings(kind, **changes):
    """Content of a ``config.json``."""
    return {"model_type": kind, **SMALL, **changes}


def student_cfg(folder, kind, *, settings=None, **keys):
    """A configuration of a tiny :class:`TransformersStudent` with random weights.

    Args:
        folder: for the model's own configuration. settings: of the model, changed. keys: as ``small_cfg`` takes them.
    """
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(small_settings(kind, **(settings or {}))))
    fixed = {
        "MODEL__META_ARCHITECTURE": "TransformersStudent",
        "MODEL__TRANSFORMERS__CONFIG": str(file),
        "MODEL__TRANSFORMERS__SIZE": [SIZE, SIZE],
        "MODEL__DETR__LOSS__CLASSIFICATION": "varifocal",
    }
    return small_cfg(**{**fixed, **keys})


def build_student(folder, kind, **arguments):
    """The detector, in training mode, with every parameter drawn anew."""
    torch.manual_seed(0)
    return randomise(build_model(student_cfg(folder, kind, **arguments)), spread=0.1).train()


def distilling_cfg(folder, kind, **keys):
    """The same as the student of a tiny Conditional DETR with random weights."""
    (folder / "teacher.yaml").write_text(small_cfg(MODEL__DETR__NUM_QUERIES=11).dump())
    fixed = {
        "MODEL__META_ARCHITECTURE": "DistillDetector",
        "MODEL__DISTILL__STUDENT_ARCHITECTURE": "TransformersStudent",
        "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(folder / "teacher.yaml"),
        "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
        "MODEL__DISTILL__LOSSES": ["PredictionLoss"],
    }
    return student_cfg(folder, kind, **{**fixed, **keys})


def build_distiller(folder, kind, **keys):
    """The model of :func:`distilling_cfg`, in training mode."""
    with teachers_without_weights():
        return build_model(distilling_cfg(folder, kind, **keys)).train()
