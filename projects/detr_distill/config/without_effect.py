"""Keys of detectron2 that nothing here reads: whoever sets one is told."""

from __future__ import annotations

import fnmatch

from detectron2.config import CfgNode

from ..errors import ConfigError
from .defaults import detector_name
from .keys import detectron2_defaults, flatten

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
SHOWN = 5


def check_no_other_task(cfg: CfgNode) -> None:
    """Raises ConfigError where a configuration asks for what is not there at all."""
    values = flatten(cfg)
    for name, reason in REFUSED.items():
        if values.get(name):
            raise ConfigError(f"{name} is {values[name]!r}; {reason}. Set it to False.")


def keys_without_effect(cfg: CfgNode) -> list[str]:
    """One line of words for every kind of key that is set away from detectron2's default, and that nothing reads."""
    values, defaults = flatten(cfg), flatten(detectron2_defaults())
    changed = [name for name, value in defaults.items() if name in values and _differ(values[name], value)]
    lines = []
    for pattern, reason in UNREAD.items():
        found = [name for name in changed if fnmatch.fnmatchcase(name, pattern)]
        if found:
            lines.append(f"{_list(found)} {'has' if len(found) == 1 else 'have'} no effect here: {reason}.")
    masks_are_used = detector_name(cfg) == "GeneralizedRCNN" or cfg.MODEL.DISTILL.LABEL_ENCODER.USE_MASKS
    if cfg.MODEL.MASK_ON and not masks_are_used:
        lines.append("MODEL.MASK_ON has no effect but the time to read masks: boxes alone are learned.")
    found = [name for name in changed if name in ("SOLVER.MOMENTUM", "SOLVER.NESTEROV")]
    if found and cfg.SOLVER.OPTIMIZER == "AdamW":
        lines.append(f"{_list(found)} {'has' if len(found) == 1 else 'have'} no effect: SOLVER.OPTIMIZER is AdamW.")
    return lines


def _differ(value: object, default: object) -> bool:
    as_list = [list(entry) if isinstance(entry, tuple) else entry for entry in (value, default)]
    return as_list[0] != as_list[1]


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
