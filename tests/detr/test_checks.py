"""Settings that cannot be, and parts that do not fit, are refused in words when the detector is built."""

from __future__ import annotations

import re

from detr_distill.config.build import build_config
from detr_distill.config.keys import declared_keys
from detr_distill.config.ranges import Range
from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.errors import ConfigError
from detr_distill.registry import DECODER_REGISTRY

import pytest
from detectron2.modeling import build_model
from helpers.builders import ROOT, small_cfg

COUNTS = [
    *("NUM_QUERIES", "HIDDEN_DIM", "NUM_HEADS", "FFN_DIM", "NUM_LEVELS", "SIZE_DIVISIBILITY"),
    *("ENCODER.NUM_POINTS", "DECODER.NUM_LAYERS", "DECODER.NUM_POINTS"),
    *("ADAMIXER.NUM_GROUPS", "ADAMIXER.IN_POINTS", "ADAMIXER.OUT_POINTS"),
    *("DENOISING.NUM_GROUPS", "CONTRASTIVE_DENOISING.NUM_PAIRS", "ANCHOR.NUM_PATTERNS"),
    *("HYBRID_QUERIES.NUM_QUERIES", "HYBRID_QUERIES.REPEATS"),
]
WEIGHTS = ("CLASS_WEIGHT", "L1_WEIGHT", "GIOU_WEIGHT", "NO_OBJECT_WEIGHT", "FOCAL_GAMMA")
IMPOSSIBLE = [
    *((key, value, "1 or more") for key in COUNTS for value in (0, -1)),
    *(
        (f"GROUP_QUERIES.{key}", value, allowed)
        for key, value, allowed in (("NUM_GROUPS", 1, "2 or more"), ("LOSS_WEIGHT", -1.0, "0 or more"))
    ),
    *((f"MATCHER.{key}", -1.0, "0 or more") for key in ("COST_CLASS", "COST_L1", "COST_GIOU")),
    *((f"LOSS.{key}", -1.0, "0 or more") for key in WEIGHTS),
    ("LOSS.FOCAL_ALPHA", 1.5, "a number from 0 to 1"),
    *((f"LOSS.{key}", -1.0, "0 or more") for key in ("QUALITY_ALPHA", "QUALITY_GAMMA")),
    ("SMCA.SMOOTHNESS", 0.0, "more than 0"),
    ("HYBRID_QUERIES.LOSS_WEIGHT", -1.0, "0 or more"),
    ("DECODER.POSITION_GAIN", -1.0, "0 or more"),
    ("NUM_CLASSES", -1, "0 or more"),
    ("ENCODER.NUM_LAYERS", -1, "0 or more"),
    *(("DROPOUT", value, "0 or more, and less than 1") for value in (-0.1, 1.0, 1.5, float("nan"))),
    *(("POSITION_TEMPERATURE", value, "1 or more") for value in (0.0, -5.0)),
    *(("DECODER.POINT_TEMPERATURE", value, "1 or more") for value in (0.0, -5.0)),
    *(("DENOISING.LABEL_NOISE", value, "a number from 0 to 1") for value in (-1.0, 2.0)),
    ("DENOISING.BOX_NOISE", -1.0, "0 or more"),
    ("LOGIT_EPSILON", 0.6, "0 or more, and less than 0.5"),
    ("NECK.POSITION_OFFSET", float("nan"), "a finite number"),
    *(("CONTRASTIVE_DENOISING.LABEL_NOISE", value, "a number from 0 to 2") for value in (-1.0, 3.0)),
    ("CONTRASTIVE_DENOISING.BOX_NOISE", -1.0, "0 or more"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), IMPOSSIBLE, ids=lambda word: str(word))
def test_a_number_outside_its_range_is_named(key, value, allowed):
    with pytest.raises(ConfigError, match=re.escape(f"MODEL.DETR.{key} is {value}. Give {allowed}.")):
        build_model(small_cfg(**{f"MODEL__DETR__{key.replace('.', '__')}": value}))


def test_every_range_is_tried():
    """Of single numbers; that it holds the default is checked where it is declared."""
    ranged = {
        name.removeprefix("MODEL.DETR.")
        for name, key in declared_keys()
        if name.startswith("MODEL.DETR.") and isinstance(key.allowed, Range) and not isinstance(key.default, tuple)
    }
    assert {key for key, _, _ in IMPOSSIBLE} == ranged


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (Range(1), (1, 1000), (0, 0.999)),
        (Range(0, most=2), (0, 2.0), (-0.001, 2.001)),
        (Range(0, below=1), (0.0, 0.999), (-0.001, 1.0)),
        (Range(0), (0, 1e9), (-1, float("inf"), float("nan"), "1", None)),
        (Range(above=0, most=1), (1e-9, 1), (0, 1.001)),
        (Range(1, odd=True), (1, 3), (0, 2, -1)),
    ],
)
def test_the_ends_of_a_range(allowed, inside, outside):
    for value in inside:
        allowed.check("KEY", value)
    for value in outside:
        with pytest.raises(ConfigError, match=f"KEY is {value!r}"):
            allowed.check("KEY", value)


def test_stochastic_depth_is_a_probability():
    for rate in (-2.0, 1.0):
        with pytest.raises(ConfigError, match=f"MODEL.TIMM.DROP_PATH is {rate}. Give 0 or more, and less than 1"):
            TimmBackbone(name="resnet18", out_features=["stage4"], drop_path=rate)


EMBEDDINGS, BOXES, POINTS = (
    "LearnedContentQueries, LearnedQueries",
    "AdaMixerQueries, AnchorBoxQueries, MarkedAnchorQueries, UnknownLabelQueries",
    "AnchorPointQueries",
)
# With MultiLevelNeck.
MORE_BOXES = (
    "AdaMixerQueries, AnchorBoxQueries, MarkedAnchorQueries, MixedQueries, TwoStageQueries, UnknownLabelQueries"
)
CHOSEN = {"DeformableBoxDecoder": ["MODEL.DETR.DECODER.NAME", "DeformableBoxDecoder",
                                   "MODEL.DETR.DECODER.BOX_REFINEMENT", "True"]}  # fmt: skip
MISFITS = [
    ("detr_student", "DetrDecoder", "AnchorBoxQueries", EMBEDDINGS),
    ("conditional_student", "ConditionalDecoder", "AnchorBoxQueries", EMBEDDINGS),
    ("smca_student", "SmcaDecoder", "AnchorPointQueries", EMBEDDINGS),
    ("deformable_plain_student", "DeformableDecoder", "TwoStageQueries", EMBEDDINGS),
    ("deformable_plain_student", "DeformableBoxDecoder", "LearnedContentQueries", MORE_BOXES),
    ("dab_student", "DabDecoder", "LearnedQueries", BOXES),
    ("dn_deformable_student", "DabDeformableDecoder", "LearnedContentQueries", MORE_BOXES),
    ("dino_student", "DinoDecoder", "LearnedContentQueries", MORE_BOXES),
    ("adamixer_student", "AdaMixerDecoder", "LearnedQueries", BOXES),
    ("anchor_student", "AnchorDecoder", "AnchorBoxQueries", POINTS),
]


@pytest.mark.parametrize(("student", "decoder", "queries", "fitting"), MISFITS, ids=lambda word: word.split(",")[0])
def test_queries_that_the_decoder_cannot_read_are_refused_and_others_named(student, decoder, queries, fitting):
    options = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TRAINING_GROUPS", "[]", *CHOSEN.get(decoder, [])]
    cfg = build_config(str(ROOT / f"configs/digits/{student}.yaml"), [*options, "MODEL.DETR.QUERIES.NAME", queries])
    assert decoder == cfg.MODEL.DETR.DECODER.NAME
    with pytest.raises(ConfigError, match=rf"{queries}.*wide; {decoder} reads \d+\. .* width: {fitting}\.$"):
        build_model(cfg)


def test_every_decoder_is_tried():
    shipped = {name for name, part in DECODER_REGISTRY if part.__module__.startswith("detr_distill.")}
    assert {decoder for _, decoder, _, _ in MISFITS} == shipped
