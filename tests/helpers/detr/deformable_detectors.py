"""Small Deformable DETRs of every kind, and the levels that detectors like them look at."""

from __future__ import annotations

import pytest
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg

LEVELS = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage2", "stage3"],
    "MODEL__DETR__NUM_LEVELS": 3,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "DeformableEncoder",
}
PLAIN = {
    **LEVELS,
    "MODEL__DETR__DECODER__NAME": "DeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "LearnedContentQueries",
}
SINGLE = {**PLAIN, "MODEL__DETR__IN_FEATURES": ["stage3"], "MODEL__DETR__NUM_LEVELS": 1}
REFINE = {**PLAIN, "MODEL__DETR__DECODER__BOX_REFINEMENT": True}
TWO_STAGE = {
    **REFINE,
    "MODEL__DETR__DECODER__NAME": "DeformableBoxDecoder",
    "MODEL__DETR__QUERIES__NAME": "TwoStageQueries",
}
VARIANTS = {"plain": PLAIN, "single": SINGLE, "refine": REFINE, "two_stage": TWO_STAGE}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], **keys})))
