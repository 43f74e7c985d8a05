"""Keys under ``MODEL.DETR`` that several parts of a detector read. A part's own keys stand beside the part."""

from __future__ import annotations

from ..config.keys import key
from ..config.ranges import COUNT, NOT_NEGATIVE, SHARE, WHOLE, Range, Words

NUM_CLASSES = key(
    80, 'classes, without "no object"; 0: as many as the training set has', WHOLE, path="MODEL.DETR.NUM_CLASSES"
)
NUM_QUERIES = key(300, "queries of the decoder", COUNT, path="MODEL.DETR.NUM_QUERIES")
HIDDEN_DIM = key(256, "width of encoder, decoder and queries", COUNT, path="MODEL.DETR.HIDDEN_DIM")
NUM_HEADS = key(8, "attention heads; must divide the width", COUNT, path="MODEL.DETR.NUM_HEADS")
FFN_DIM = key(2048, "inner width of the feed-forward steps", COUNT, path="MODEL.DETR.FFN_DIM")
# What is kept is divided by 1 - DROPOUT.
DROPOUT = key(0.1, "in attention, feed-forward and residual sums", Range(0, below=1), path="MODEL.DETR.DROPOUT")
IN_FEATURES = key(
    ("res5",),
    "the backbone outputs that are used, fine to coarse; exactly one with `SingleLevelNeck`",
    path="MODEL.DETR.IN_FEATURES",
)
NUM_LEVELS = key(
    4,
    "`MultiLevelNeck`: levels in all, those of the features and extra ones of half the size each",
    COUNT,
    path="MODEL.DETR.NUM_LEVELS",
)
# The ratio between the longest and the shortest wave length.
POSITION_TEMPERATURE = key(
    10000.0, "of the sine embedding of image cells", Range(1), path="MODEL.DETR.POSITION_TEMPERATURE"
)
POINT_TEMPERATURE = key(
    10000.0, "of the sine embedding of reference points", Range(1), path="MODEL.DETR.DECODER.POINT_TEMPERATURE"
)
POSITION_GAIN = key(
    0.0,
    "`ConditionalDecoder`, `AnchorDecoder`: above 0, attention starts around the reference points, the sharper the "
    "larger; 0 is the paper's start",
    NOT_NEGATIVE,
    path="MODEL.DETR.DECODER.POSITION_GAIN",
)
ANCHOR_ATTENTION = key(
    "row_column",
    '`AnchorEncoder` and `AnchorDecoder`: row-column decoupled attention to the image, or `"standard"`',
    Words("row_column", "standard"),
    path="MODEL.DETR.ANCHOR.ATTENTION",
)
LOGIT_EPSILON = key(
    0.0,
    "how far from 0 and 1 a reference point or box stays before its logit is taken; 0 is what the authors of the "
    "decoder have: 1e-3 of DAB-DETR, DN-DETR and DINO, 1e-5 of the others; detrex has 1e-3 in all, transformers 1e-5",
    Range(0, below=0.5),
    path="MODEL.DETR.LOGIT_EPSILON",
)
L1_BOXES = key(
    "centres",
    'what the L1 distance of loss and matching cost compares: centres and sizes, or `"corners"`, as AdaMixer does',
    Words("centres", "corners"),
    path="MODEL.DETR.LOSS.L1_BOXES",
)
# Class losses whose goal for an object's class is how well the predicted box covers it.
QUALITY_LOSSES = ("varifocal", "matchability")
CLASSIFICATION = key(
    "softmax",
    '`"softmax"` with a "no object" class; or a sigmoid for each class: `"focal"`, or with the IoU of the predicted '
    'box as the score of its object `"varifocal"` (RT-DETR, D-FINE) and `"matchability"` (DEIM)',
    Words("softmax", "focal", *QUALITY_LOSSES),
    path="MODEL.DETR.LOSS.CLASSIFICATION",
)
FOCAL_ALPHA = key(0.25, "focal: in the loss and in the matching cost", SHARE, path="MODEL.DETR.LOSS.FOCAL_ALPHA")
FOCAL_GAMMA = key(2.0, "focal: in the loss and in the matching cost", NOT_NEGATIVE, path="MODEL.DETR.LOSS.FOCAL_GAMMA")
# By `MODEL.DETR.LOSS.CLASSIFICATION`: how a head's logits become class probabilities.
ACTIVATIONS = {"softmax": "softmax", "focal": "sigmoid", **dict.fromkeys(QUALITY_LOSSES, "sigmoid")}
