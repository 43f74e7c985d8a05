"""Tiny detectors of transformers, as configurations and as folders."""

from __future__ import annotations

import json

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.hugging_face.folder import save_folder

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
# Those that look at a padding mask; and those with groups of queries.
DETRS, GROUPED = ["detr", "conditional_detr", "dab-detr", "deformable_detr"], ["lw_detr", "rf_detr"]
CLASSES = 5
EVERY_KIND = [*KINDS, *DETRS, *GROUPED]
# A map of one cell has no group normalisation in training.
LARGE = ((72, 96), (96, 80))
_DETR = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "encoder_layers": 1,
    "decoder_layers": LAYERS, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_queries": 9, "d_model": 32, "dropout": 0.0,
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 12, "hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage4"],
    },
}  # fmt: skip
_DAB = {**{name: value for name, value in _DETR.items() if name != "d_model"}, "hidden_size": 32}
_LEVELS = {**_DETR["backbone_config"], "out_features": ["stage3", "stage4"]}
_DEFORMABLE = {
    **_DETR, "backbone_config": _LEVELS, "num_feature_levels": 3, "two_stage": True, "with_box_refine": True,
    "two_stage_num_proposals": 9, "disable_custom_kernels": True,
}  # fmt: skip
_GROUPS = {
    "d_model": 32, "decoder_layers": LAYERS, "decoder_ffn_dim": 48, "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4, "num_queries": 6, "group_detr": 3, "c2f_num_blocks": 1, "dropout": 0.0,
}  # fmt: skip
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIZE}
OTHERS = {
    "detr": _DETR,
    "conditional_detr": _DETR,
    "dab-detr": _DAB,
    "deformable_detr": _DEFORMABLE,
    "lw_detr": {
        **_GROUPS, "projector_scale_factors": [1.0],
        "backbone_config": {
            "model_type": "lw_detr_vit", **_VIT, "pretrain_image_size": SIZE, "patch_size": 8, "num_windows": 4,
            "window_block_indices": [0], "out_indices": [1, 2],
        },
    },
    "rf_detr": {
        **_GROUPS,
        "backbone_config": {
            "model_type": "rf_detr_dinov2", **_VIT, "patch_size": 8, "num_windows": 2, "out_indices": [1, 2],
        },
    },
}  # fmt: skip


def small_settings(kind, **changes):
    """Content of a ``config.json``."""
    return {"model_type": kind, **OTHERS.get(kind, SMALL), **changes}


def student_keys(folder, kind, settings=None):
    """What ``small_cfg`` takes for a tiny :class:`TransformersStudent` with random weights.

    Args:
        folder: for the model's own configuration. settings: of the model, changed.
    """
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(small_settings(kind, **(settings or {}))))
    return {
        "MODEL__META_ARCHITECTURE": "TransformersStudent",
        "MODEL__TRANSFORMERS__CONFIG": str(file),
        "MODEL__TRANSFORMERS__SIZE": [] if kind in DETRS else [SIZE, SIZE],
        "MODEL__DETR__LOSS__CLASSIFICATION": "softmax" if kind == "detr" else "varifocal",
    }


def student_cfg(folder, kind, *, settings=None, **keys):
    """The configuration of :func:`student_keys`, with others."""
    return small_cfg(**{**student_keys(folder, kind, settings), **keys})


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


def taught_by_dfine(folder):
    """What ``small_cfg`` takes for a tiny D-FINE that a folder of another teaches."""
    save_folder(build_student(folder, "d_fine"), folder / "teacher")
    return {
        **student_keys(folder, "d_fine"),
        "MODEL__META_ARCHITECTURE": "DistillDetector",
        "MODEL__DISTILL__STUDENT_ARCHITECTURE": "TransformersStudent",
        "MODEL__DISTILL__TEACHER__NAME": "TransformersDetector",
        "MODEL__DISTILL__TEACHER__WEIGHTS": str(folder / "teacher"),
        "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
    }


def build_distiller(folder, kind, **keys):
    """The model of :func:`distilling_cfg`, in training mode."""
    with teachers_without_weights():
        return build_model(distilling_cfg(folder, kind, **keys)).train()


def solved(student, inputs):
    """A step's losses, what they came from, and the objects."""
    truth = read_ground_truth(inputs, "cpu")
    decoded = student.finish(student.start(inputs), truth)
    matchings = Matchings()
    supervised = student.supervise(decoded, truth, matchings)
    matchings.solve()
    return student.losses(supervised), decoded, truth


def labels_of(truth):
    """The objects as the library takes them."""
    return [
        {"class_labels": truth.labels[image, :count], "boxes": truth.boxes[image, :count]}
        for image, count in enumerate(truth.counts)
    ]
