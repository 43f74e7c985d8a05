"""Detectors that cannot be built, trained or imported as they are asked for."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.assignment import Cost, solve_assignments

import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.adamixer_detectors import ADAMIXER
from helpers.detr.deformable_detectors import LEVELS
from helpers.detr.dense_detectors import ANCHOR

from bad_input import Row

ADA = {name.removeprefix("MODEL__DETR__"): value for name, value in ADAMIXER.items()}
SAMPLED = {name.removeprefix("MODEL__DETR__"): value for name, value in LEVELS.items()}
POINTS = {name.removeprefix("MODEL__DETR__"): value for name, value in ANCHOR.items()}


def build(**keys: object) -> Callable[[Path], object]:
    """Builds a small detector with keys below MODEL.DETR."""
    return lambda folder: build_model(small_cfg(**{f"MODEL__DETR__{name}": value for name, value in keys.items()}))


def cost(value: float) -> Callable[[Path], object]:
    return lambda folder: solve_assignments([Cost("boxes", torch.full((1, 1, 2, 2), value), [2])])


def folder_of(model_type: str | None, folder: Path) -> object:
    """Imports a folder of transformers whose config.json names a model, or that has none."""
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return import_checkpoint("transformers", folder)


def file_of(content: dict, source: str, folder: Path) -> object:
    torch.save(content, folder / "theirs.pth")
    return import_checkpoint(source, folder / "theirs.pth")


ROWS = [
    Row(
        "logit_epsilon_negative",
        build(LOGIT_EPSILON=-0.001),
        r"LOGIT_EPSILON is -0.001. Give 0 or more, and less than 0.5",
    ),
    Row("logit_epsilon_half", build(LOGIT_EPSILON=0.5), r"LOGIT_EPSILON is 0.5. Give"),
    Row("logit_epsilon_nan", build(LOGIT_EPSILON=math.nan), r"LOGIT_EPSILON is nan. Give"),
    Row("l1_of_corner", build(LOSS__L1_BOXES="corner"), r"L1_BOXES is 'corner'. Known: 'centres', 'corners'"),
    Row("l1_of_nothing", build(LOSS__L1_BOXES=""), r"L1_BOXES is ''. Known: 'centres', 'corners'"),
    Row(
        "sigmoid_classes",
        build(LOSS__CLASSIFICATION="sigmoid"),
        r"CLASSIFICATION is 'sigmoid'. Known: 'softmax', 'focal'",
    ),
    Row("focal_alpha_percent", build(LOSS__FOCAL_ALPHA=25.0), r"FOCAL_ALPHA is 25.0. Give a number from 0 to 1"),
    Row("focal_gamma_negative", build(LOSS__FOCAL_GAMMA=-2.0), r"FOCAL_GAMMA is -2.0. Give 0 or more"),
    Row("cost_negative", build(MATCHER__COST_L1=-5.0), r"COST_L1 is -5.0. Give 0 or more"),
    Row("cost_nan", build(MATCHER__COST_GIOU=math.nan), r"COST_GIOU is nan. Give"),
    Row("weight_negative", build(LOSS__GIOU_WEIGHT=-2.0), r"GIOU_WEIGHT is -2.0. Give 0 or more"),
    Row("weight_infinite", build(LOSS__L1_WEIGHT=math.inf), r"L1_WEIGHT is inf. Give"),
    Row("no_classes", build(NUM_CLASSES=0), r"NUM_CLASSES is 0, which takes .*give the number"),
    Row("no_queries", build(NUM_QUERIES=0), r"NUM_QUERIES is 0. Give 1 or more"),
    Row("no_decoder_layers", build(DECODER__NUM_LAYERS=0), r"DECODER.NUM_LAYERS is 0. Give 1 or more"),
    Row("odd_width", build(HIDDEN_DIM=18), r"HIDDEN_DIM is 18; the sine embedding of positions wants a multiple of 4"),
    Row(
        "heads_that_do_not_divide",
        build(NUM_HEADS=3),
        r"HIDDEN_DIM is 16, which MODEL.DETR.NUM_HEADS = 3 does not divide",
    ),
    Row("all_is_dropped", build(DROPOUT=1.0), r"DROPOUT is 1.0. Give 0 or more, and less than 1"),
    Row("temperature_below_one", build(POSITION_TEMPERATURE=0.5), r"POSITION_TEMPERATURE is 0.5. Give 1 or more"),
    Row("unknown_decoder", build(DECODER__NAME="DabDetrDecoder"), r"DECODER.NAME.*DabDetrDecoder"),
    Row("unknown_feature", build(IN_FEATURES=["stage9"]), r"IN_FEATURES is \['stage9'\]; this neck takes one of"),
    Row("two_features_for_one", build(IN_FEATURES=["stage2", "stage3"]), r"this neck takes one of"),
    Row(
        "anchors_for_conditional",
        build(QUERIES__NAME="AnchorBoxQueries"),
        r"positions are 4 wide; ConditionalDecoder reads 16",
    ),
    Row("embeddings_for_dab", build(DECODER__NAME="DabDecoder"), r"positions are 16 wide; DabDecoder reads 4"),
    Row(
        "one_level_to_sample",
        build(DECODER__NAME="DeformableDecoder"),
        r"NECK.NAME is SingleLevelNeck; DeformableDecoder samples",
    ),
    Row(
        "boxes_that_stay",
        build(**{**SAMPLED, "DECODER__NAME": "DeformableBoxDecoder", "QUERIES__NAME": "TwoStageQueries"}),
        r"BOX_REFINEMENT is False; DeformableBoxDecoder starts from boxes",
    ),
    Row("adamixer_groups", build(**ADA, ADAMIXER__NUM_GROUPS=5), r"NUM_GROUPS = 5 does not divide"),
    Row("adamixer_no_points", build(**ADA | {"ADAMIXER__IN_POINTS": 0}), r"IN_POINTS is 0. Give 1 or more"),
    Row("adamixer_narrow", build(**ADA | {"HIDDEN_DIM": 16}), r"HIDDEN_DIM is 16; AdaMixerNeck normalises 32 groups"),
    Row("adamixer_gap", build(**ADA | {"IN_FEATURES": ["stage1", "stage3"]}), r"wants each level at twice the stride"),
    Row("adamixer_queries", build(**ADA | {"QUERIES__NAME": "LearnedQueries"}), r"32 wide; AdaMixerDecoder reads 4"),
    Row("anchor_patterns", build(**POINTS | {"ANCHOR__NUM_PATTERNS": 4}), r"Queries are anchor points times patterns"),
    Row("label_noise_twice", build(DENOISING__LABEL_NOISE=1.5), r"LABEL_NOISE is 1.5. Give a number from 0 to 1"),
    Row(
        "denoising_of_points",
        build(TRAINING_GROUPS=["DenoisingQueries"]),
        r"names DenoisingQueries, whose queries are boxes",
    ),
    Row(
        "cost_matrix_nan",
        cost(math.nan),
        r"matching cost 'boxes' of decoder layer 0 and image 0 of the batch is not finite",
    ),
    Row("cost_matrix_infinite", cost(math.inf), r"is not finite. Lower SOLVER.BASE_LR"),
    Row(
        "image_without_labels",
        lambda folder: read_ground_truth(make_inputs(labels=False), "cpu"),
        r"A training image \(0.jpg\) has no 'instances'",
    ),
    Row(
        "import_of_nothing",
        functools.partial(folder_of, None),
        r"a folder of transformers holds config.json; this one does not",
    ),
    Row(
        "import_of_yolos",
        functools.partial(folder_of, "yolos"),
        r"describes a model of type 'yolos'. Those that can be imported",
    ),
    Row(
        "import_without_weights",
        functools.partial(folder_of, "detr"),
        r"holds neither model.safetensors nor pytorch_model.bin",
    ),
    Row(
        "import_of_unknown_source",
        lambda folder: import_checkpoint("mmdetection", folder),
        r"source 'mmdetection': known are",
    ),
    Row(
        "import_of_a_folder",
        lambda folder: import_checkpoint("dino", folder),
        r"is a folder; --source dino reads one file",
    ),
    Row(
        "import_of_other_tensors",
        functools.partial(file_of, {"model": {"layer.weight": torch.zeros(1)}}, "detrex"),
        r"those are conditional_detr, dab_detr",
    ),
]
