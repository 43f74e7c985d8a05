"""Keys that nothing reads, here at all or beside other settings: whoever sets one is told."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from detectron2.config import CfgNode

from ..errors import ConfigError, first
from .defaults import detector_name
from .keys import PACKAGE, declared_keys, detectron2_defaults, flatten

# What detectron2's own training program or another task reads; names as fnmatch takes them.
UNREAD = {
    "TEST.AUG.*": "evaluation looks at each image once, without test-time augmentation",
    "TEST.PRECISE_BN.*": "statistics of batch normalisation are those of the training",
    "TEST.EXPECTED_RESULTS": "results are written, not compared",
    "TEST.KEYPOINT_OKS_SIGMAS": "boxes alone are evaluated",
    "MODEL.ROI_KEYPOINT_HEAD.*": "keypoints are not detected",
    "MODEL.SEM_SEG_HEAD.*": "boxes alone are detected",
    "MODEL.PANOPTIC_FPN.*": "boxes alone are detected",
    "DATASETS.PROPOSAL_FILES_*": "proposals are the detector's own",
    "DATASETS.PRECOMPUTED_PROPOSAL_*": "proposals are the detector's own",
    "GLOBAL.HACK": "nothing reads it",
}
# What a detector would be built with and its data does not have.
REFUSED = {
    "MODEL.KEYPOINT_ON": "keypoints are neither read nor detected here",
    "MODEL.LOAD_PROPOSALS": "proposal files are not read here; a detector makes its own",
}


def check_no_other_task(cfg: CfgNode) -> None:
    """Raises ConfigError where a configuration asks for what is not there at all."""
    values = flatten(cfg)
    for name, reason in REFUSED.items():
        if values.get(name):
            raise ConfigError(f"{name} is {values[name]!r}; {reason}. Set it to False.")


def keys_without_effect(cfg: CfgNode) -> list[str]:
    """One line of words for every kind of key that is set away from its default, and that nothing reads."""
    values, defaults = flatten(cfg), flatten(detectron2_defaults())
    defaults.update({name: declared.default for name, declared in declared_keys(PACKAGE)})
    changed = [name for name, value in defaults.items() if name in values and _differ(values[name], value)]
    lines = []
    for patterns, reason in [*UNREAD.items(), *_switched_off(cfg)]:
        found = [name for name in changed if any(fnmatch.fnmatchcase(name, each) for each in patterns.split())]
        if found:
            lines.append(f"{first(found)} {'has' if len(found) == 1 else 'have'} no effect here: {reason}.")
    return lines


def _switched_off(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Patterns of keys that another setting makes useless, and which."""
    detector = detector_name(cfg)
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        yield "SOLVER.CLIP_GRADIENTS.*", "SOLVER.CLIP_GRADIENTS.ENABLED is False"
    if not cfg.SOLVER.AMP.ENABLED:
        yield "SOLVER.AMP.DTYPE", "SOLVER.AMP.ENABLED is False"
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        yield "SOLVER.MOMENTUM SOLVER.NESTEROV", "SOLVER.OPTIMIZER is AdamW"
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        yield "DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SAMPLER_TRAIN is not RepeatFactorTrainingSampler"
    if cfg.DATALOADER.SAMPLER_TRAIN != "RandomSubsetTrainingSampler":
        yield "DATALOADER.RANDOM_SUBSET_RATIO", "DATALOADER.SAMPLER_TRAIN is not RandomSubsetTrainingSampler"
    if not cfg.DATALOADER.UNLABELED_PER_BATCH:
        yield "DATASETS.UNLABELED MODEL.DISTILL.UNLABELED_WEIGHT", "DATALOADER.UNLABELED_PER_BATCH is 0"
        if cfg.INPUT.STRONG.IMAGES == "unlabeled":
            yield "INPUT.STRONG.*", "DATALOADER.UNLABELED_PER_BATCH is 0, so that no image is unlabelled"
    if cfg.INPUT.STRONG.IMAGES == "none":
        yield "INPUT.STRONG.*", "INPUT.STRONG.IMAGES is none"
    if cfg.DATASETS.LABELED_SHARE == 1:
        yield "DATASETS.LABELED_SEED", "DATASETS.LABELED_SHARE is 1, so that all labels are used"
    if not cfg.MODEL.DISTILL.START_FROM_TEACHER:
        yield "MODEL.DISTILL.START_WEIGHTS", "MODEL.DISTILL.START_FROM_TEACHER names no part"
    if detector == "DetrDetector":
        yield "VIS_PERIOD", "tools/visualize.py draws what a DetrDetector sees"
    if not cfg.MODEL.MASK_ON:
        yield "MODEL.ROI_MASK_HEAD.* INPUT.MASK_FORMAT", "MODEL.MASK_ON is False"
    elif detector != "GeneralizedRCNN" and not cfg.MODEL.DISTILL.LABEL_ENCODER.USE_MASKS:
        yield "MODEL.MASK_ON", "masks are read, and boxes alone are learned"


def _differ(value: object, default: object) -> bool:
    as_list = [list(entry) if isinstance(entry, tuple) else entry for entry in (value, default)]
    return as_list[0] != as_list[1]
