"""What detectron2's own keys may be: it builds with a negative bound or a NaN, and trains uphill or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..errors import ConfigError
from .keys import read_key
from .ranges import (
    COUNT,
    FINITE,
    IMAGES,
    ITERATION,
    LARGEST,
    LAYERS_OR_NONE,
    NOT_NEGATIVE,
    PERIOD,
    POSITIVE,
    PROPER_SHARE,
    SHARE,
    WHOLE,
    Allowed,
    Each,
    Infinite,
    Range,
    Text,
    Words,
)

_NORM = Words("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_BOX_LOSS = Words("smooth_l1", "giou", "diou", "ciou")
_BOX_WEIGHTS = Each(POSITIVE, 4)
_POOLER = Words("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated")
_LABELS = Each(Words(-1, 0, 1))
_NAMES = Each(Text(), least=0)
_SIZES = Each(WHOLE, least=0)  # a 0 among them leaves an image as it is
_OR_NONE = Range(-1, most=LARGEST, whole=True)
# Greater seeds overflow NumPy's once the rank is added.
_SEED = Range(-1, most=2**31 - 1, whole=True)

ALLOWED: dict[str, Allowed] = {
    "DATASETS.TEST": _NAMES,
    "DATASETS.TRAIN": _NAMES,
    "SEED": _SEED,
    "VERSION": Words(2),
    "VIS_PERIOD": PERIOD,
    "DATALOADER.NUM_WORKERS": WHOLE,
    "DATALOADER.REPEAT_THRESHOLD": NOT_NEGATIVE,
    "DATALOADER.SAMPLER_TRAIN": Words("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    "INPUT.CROP.SIZE": Each(POSITIVE, 2),
    "INPUT.CROP.TYPE": Words("absolute_range", "absolute", "relative_range", "relative"),
    "INPUT.FORMAT": Words("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": Words("polygon", "bitmask"),
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": WHOLE,
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Words("choice", "range"),
    "INPUT.RANDOM_FLIP": Words("horizontal", "vertical", "none"),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": ITERATION,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Words("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Infinite(POSITIVE),
    "SOLVER.GAMMA": PROPER_SHARE,
    "SOLVER.IMS_PER_BATCH": IMAGES,
    "SOLVER.LR_SCHEDULER_NAME": Words("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.MAX_ITER": ITERATION,
    "SOLVER.MOMENTUM": Range(0, below=1),
    "SOLVER.REFERENCE_WORLD_SIZE": WHOLE,
    "SOLVER.STEPS": Each(ITERATION, least=0),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": PERIOD,
    "SOLVER.WARMUP_METHOD": Words("linear", "constant"),
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NOT_NEGATIVE,
    "TEST.DETECTIONS_PER_IMAGE": COUNT,
    "TEST.EVAL_PERIOD": PERIOD,
    "MODEL.ANCHOR_GENERATOR.ANGLES": Each(Each(FINITE)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Each(Each(POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": Range(0, below=1),
    "MODEL.ANCHOR_GENERATOR.SIZES": Each(Each(POSITIVE)),
    "MODEL.BACKBONE.FREEZE_AT": WHOLE,
    "MODEL.FPN.IN_FEATURES": _NAMES,
    "MODEL.FPN.FUSE_TYPE": Words("sum", "avg"),
    "MODEL.FPN.NORM": _NORM,
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.PIXEL_MEAN": Each(FINITE),
    "MODEL.PIXEL_STD": Each(POSITIVE),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": WHOLE,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": COUNT,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": Each(Words(False, True), 4),
    "MODEL.RESNETS.DEPTH": Words(18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.NUM_GROUPS": COUNT,
    "MODEL.RESNETS.OUT_FEATURES": Each(Text()),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.RES5_DILATION": Words(1, 2),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": COUNT,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": SHARE,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": NOT_NEGATIVE,
    "MODEL.RETINANET.IN_FEATURES": Each(Text()),
    "MODEL.RETINANET.IOU_LABELS": _LABELS,
    "MODEL.RETINANET.IOU_THRESHOLDS": Each(PROPER_SHARE),
    "MODEL.RETINANET.NMS_THRESH_TEST": SHARE,
    "MODEL.RETINANET.NORM": _NORM,
    "MODEL.RETINANET.NUM_CLASSES": WHOLE,
    "MODEL.RETINANET.NUM_CONVS": LAYERS_OR_NONE,
    "MODEL.RETINANET.PRIOR_PROB": Range(above=0, below=1),
    "MODEL.RETINANET.SCORE_THRESH_TEST": SHARE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": NOT_NEGATIVE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": COUNT,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": Each(_BOX_WEIGHTS),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": Each(PROPER_SHARE),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": COUNT,
    "MODEL.ROI_BOX_HEAD.FC_DIM": COUNT,
    "MODEL.ROI_BOX_HEAD.NORM": _NORM,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": LAYERS_OR_NONE,
    "MODEL.ROI_BOX_HEAD.NUM_FC": LAYERS_OR_NONE,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": WHOLE,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.ROI_HEADS.IN_FEATURES": Each(Text()),
    "MODEL.ROI_HEADS.IOU_LABELS": _LABELS,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": Each(PROPER_SHARE),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": WHOLE,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": SHARE,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": COUNT,
    "MODEL.ROI_MASK_HEAD.NORM": _NORM,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": LAYERS_OR_NONE,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": WHOLE,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": NOT_NEGATIVE,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RPN.BOUNDARY_THRESH": _OR_NONE,
    "MODEL.RPN.CONV_DIMS": Each(_OR_NONE),
    "MODEL.RPN.IN_FEATURES": Each(Text()),
    "MODEL.RPN.IOU_LABELS": _LABELS,
    "MODEL.RPN.IOU_THRESHOLDS": Each(PROPER_SHARE),
    "MODEL.RPN.LOSS_WEIGHT": NOT_NEGATIVE,
    "MODEL.RPN.NMS_THRESH": SHARE,
    "MODEL.RPN.POSITIVE_FRACTION": SHARE,
    "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.SMOOTH_L1_BETA": NOT_NEGATIVE,
}
# None has a meaning for these: what other parameters have.
MAY_BE_NONE = ("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.WEIGHT_DECAY_NORM")


def check_detectron2_keys(cfg: CfgNode) -> None:
    """Raises ConfigError where a key of detectron2's has a value that is not allowed, or two keys contradict."""
    for name, allowed in ALLOWED.items():
        value = read_key(cfg, name)
        if value is not None or name not in MAY_BE_NONE:
            allowed.check(name, value)
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        raise ConfigError(f"MODEL.PIXEL_MEAN is {mean!r} and MODEL.PIXEL_STD is {std!r}. Give as many of both.")
    _check_device(cfg.MODEL.DEVICE)
    _check_sizes(cfg)
    if cfg.INPUT.MAPPER == "detr":
        Words("BGR", "RGB").check("INPUT.FORMAT, with INPUT.MAPPER detr,", cfg.INPUT.FORMAT)
    _check_reference(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE)
    _check_crop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    _check_increasing("SOLVER.STEPS", cfg.SOLVER.STEPS)
    for node in ("RETINANET", "RPN", "ROI_HEADS"):
        thresholds, labels = cfg.MODEL[node].IOU_THRESHOLDS, cfg.MODEL[node].IOU_LABELS
        _check_increasing(f"MODEL.{node}.IOU_THRESHOLDS", thresholds)
        if len(labels) != len(thresholds) + 1:
            raise ConfigError(
                f"MODEL.{node}.IOU_LABELS is {labels!r}, for the ranges between the {len(thresholds)} numbers of "
                f"IOU_THRESHOLDS. Give {len(thresholds) + 1} labels."
            )


def _check_reference(images: int, processes: int) -> None:
    if processes and images % processes:
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {processes}, and SOLVER.IMS_PER_BATCH {images} is no multiple of it. Give "
            "the number of processes that the images of a batch were meant for, or 0 to take the keys as they are."
        )


def _check_sizes(cfg: CfgNode) -> None:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes!r}; with MIN_SIZE_TRAIN_SAMPLING range it needs two sizes, the smallest "
            "and the largest."
        )
    if cfg.INPUT.MAPPER == "detectron2" and not sizes:
        raise ConfigError("INPUT.MIN_SIZE_TRAIN is empty, and INPUT.MAPPER detectron2 draws one. Give (0,) for none.")


def _check_crop(kind: str, size: Sequence[float]) -> None:
    if kind.startswith("relative") and max(size) > 1:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {size!r}, and with INPUT.CROP.TYPE {kind} it is a share of the image. Give numbers "
            "above 0 and at most 1, or INPUT.CROP.TYPE absolute_range for pixels."
        )
    if kind.startswith("absolute"):
        Each(COUNT, 2).check(f"INPUT.CROP.SIZE, with INPUT.CROP.TYPE {kind} in pixels,", size)
    if kind == "absolute_range" and size[0] > size[1]:
        raise ConfigError(f"INPUT.CROP.SIZE is {size!r}. Give the smallest side and the largest, in this order.")


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {name!r}. Give cpu, cuda, or cuda:0 and so on.") from error


def _check_increasing(key: str, values: Sequence[float]) -> None:
    if any(second <= first for first, second in itertools.pairwise(values)):
        raise ConfigError(f"{key} is {tuple(values)!r}. Give the numbers from small to large, each once.")
