"""The cases whose losses are stored: every configuration of configs/digits, and forms of them that no file shows."""

from __future__ import annotations

import dataclasses

from helpers.builders import ROOT, SPREAD

DIGITS = ROOT / "configs" / "digits"
# The random teacher of these enlarges rounding errors, tenfold in each of its layers. They were stored before the
# limit was; what they differ by is still below the tolerance of the test that compares them.
OLDER_LIMIT = 7e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step whose losses are stored.

    Attributes:
        config: the name of a file of configs/digits. keys: others below MODEL.DISTILL.
        spread: standard deviation of the weights of student and teacher. position_gain: factor by which the positions
            of the teacher's queries are larger.
        limit: the largest relative difference between the values of two kinds of CPU.
    """

    config: str
    keys: dict[str, object] = dataclasses.field(default_factory=dict)
    spread: float = SPREAD
    position_gain: float = 1.0
    limit: float = 2e-5


def feature_loss(**keys: object) -> Case:
    """A form of FeatureLoss as in configs/baselines; widths differ here, so that most need the 1x1 adapter."""
    return Case("fitnet_conditional", {f"FEATURE_LOSS.{key}": value for key, value in keys.items()})


FILES = {file.stem: Case(file.stem) for file in sorted(DIGITS.glob("*.yaml")) if not file.stem.startswith("Base-")}
# Files whose random networks need care.
DRAWN_OTHERWISE = {
    "conditional_to_retinanet": Case(
        "conditional_to_retinanet",
        # Random detectors agree on no box and are sure of no class.
        {
            "OVERLAP_MATCHER.SCORE_THRESHOLD": 0.0,
            "OVERLAP_MATCHER.MIN_IOU": 0.1,
            "PREDICTION_LOSS.BOX_SCORE_THRESHOLD": 0.0,
        },
        # Otherwise all queries give one box, and rounding decides which of them an anchor's box is the closest to.
        spread=0.1,
        position_gain=30.0,
    ),
    "d3etr_conditional": Case("d3etr_conditional", limit=OLDER_LIMIT),
    "detrdistill_adamixer": Case("detrdistill_adamixer", spread=0.1),
    "detrdistill_conditional": Case("detrdistill_conditional", limit=OLDER_LIMIT),
    "detrdistill_deformable": Case("detrdistill_deformable", limit=OLDER_LIMIT),
    "kd_detr_conditional": Case("kd_detr_conditional", limit=OLDER_LIMIT),
    "kd_detr_deformable": Case("kd_detr_deformable", spread=0.1),
    "retinanet_to_conditional": Case(
        "retinanet_to_conditional",
        {
            "TEACHER.OPTS": ("TEST.DETECTIONS_PER_IMAGE", 20, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
            "PREDICTION_LOSS.BOX_SCORE_THRESHOLD": 0.0,
        },
    ),
}
# What no file shows.
VARIANTS = {
    "at_conditional": feature_loss(WEIGHT=1000.0, NORM="attention", ADAPTER_LAYERS=0, MEAN="sum"),
    "contrastive_conditional": Case(
        "detrdistill_conditional",
        {"LOSSES": ("QueryRelationLoss",), "QUERY_RELATION_LOSS.DIVERGENCE": "contrastive"},
    ),
    "cwd_conditional": feature_loss(WEIGHT=10.0, DIVERGENCE="kl", SOFTMAX="space", MEAN="sum"),
    "defeat_conditional": feature_loss(WEIGHT=1.5, MEAN="levels", FOREGROUND=True, BACKGROUND_WEIGHT=4.0),
    "detrdistill_published": Case(
        "detrdistill_conditional",
        {
            "PREDICTION_LOSS.DIVERGENCE": "kl",
            "PREDICTION_LOSS.NORMALIZER": "pairs",
            "PREDICTION_LOSS.PAIR_WEIGHT": "equal",
            "TARGET_AWARE_LOSS.WEIGHT": 1.0,
        },
        limit=OLDER_LIMIT,
    ),
    "pseudo_labels_conditional": Case(
        "self_training_conditional",
        {
            "MATCHERS": ("PseudoLabelMatcher",),
            "LOSSES": ("PseudoLabelLoss",),
            "PSEUDO_LABEL_MATCHER.COPIES": 2,
            "PSEUDO_LABELS.IMAGES": "none",
            "UNLABELED_WEIGHT": 4.0,
        },
    ),
    "pkd_conditional": feature_loss(WEIGHT=3.0, NORM="batch", MEAN="sum"),
    "localization_dfine": Case(
        "conditional_to_dfine",
        {
            "TEACHER.CONFIG_FILE": "configs/digits/dfine_student.yaml",
            "MATCHERS": ("AdaptiveMatcher",),
            "LOSSES": ("LocalizationLoss",),
        },
    ),
    "sampled_attention_deformable": Case(
        "d3etr_deformable",
        {
            "LOSSES": ("SampledAttentionLoss",),
            "TEACHER.CONFIG_FILE": "configs/digits/deformable_student.yaml",
            "TEACHER.OPTS": ("MODEL.DETR.DECODER.NUM_LAYERS", 3, "MODEL.DETR.DECODER.NUM_POINTS", 3),
        },
    ),
}
CASES = {**FILES, **DRAWN_OTHERWISE, **VARIANTS}
