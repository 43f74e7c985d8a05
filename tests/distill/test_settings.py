"""Numbers under MODEL.DISTILL that cannot be are refused in words, whichever parts are in use."""

from __future__ import annotations

from collections.abc import Iterator

from detr_distill.config.defaults import add_detr_distill_config
from detr_distill.distill.settings import RANGES, check_settings
from detr_distill.errors import ConfigError

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from helpers.builders import small_cfg

IMPOSSIBLE = {
    "EMA_TEACHER.DECAY": 1.0,
    "LABEL_ENCODER.NUM_HEADS": 0,
    "LABEL_ENCODER.REFINEMENT_KERNEL": 2,
    "LABEL_ENCODER.HEAD_SHARE": 0.0,
    "LABEL_MAP_ENCODER.WIDTH": 1,
    "BALANCE.ITERATIONS": 0,
    "BALANCE.TARGET_SHARE": 1.0,
    "ADAPTIVE_MATCHER.COST_L1": -1.0,
    "OVERLAP_MATCHER.MIN_IOU": 2.0,
    "PREDICTION_LOSS.TEMPERATURE": 0.0,
    "PREDICTION_LOSS.GIOU_WEIGHT": -1.0,
    "FEATURE_LOSS.ADAPTER_LAYERS": 4,
    "FEATURE_LOSS.ADAPTER_KERNEL": 0,
    "FEATURE_LOSS.WEIGHT": float("nan"),
    "MASKED_GENERATION_LOSS.MASK_RATIO": 1.0,
    "TARGET_AWARE_LOSS.EXPONENT": 1.5,
    "SAMPLED_ATTENTION_LOSS.GRID_SIZE": 1,
}


def numbers(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key


def test_every_number_has_a_range_that_holds_its_default():
    cfg = get_cfg()
    add_detr_distill_config(cfg)
    assert set(numbers(cfg.MODEL.DISTILL)) == set(RANGES)
    check_settings(cfg)


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_a_number_outside_its_range_is_named_before_anything_is_built(key):
    keys = {"MODEL__META_ARCHITECTURE": "DistillDetector", f"MODEL__DISTILL__{key.replace('.', '__')}": IMPOSSIBLE[key]}
    with pytest.raises(ConfigError, match=f"^MODEL.DISTILL.{key} is {IMPOSSIBLE[key]}. Give "):
        build_model(small_cfg(**keys))


@pytest.mark.parametrize("key", ["MATCHERS", "LOSSES"])
def test_a_plug_in_is_named_once(key):
    name = {"MATCHERS": "FixedMatcher", "LOSSES": "PredictionLoss"}[key]
    keys = {"MODEL__META_ARCHITECTURE": "DistillDetector", f"MODEL__DISTILL__{key}": [name, name]}
    with pytest.raises(ConfigError, match=f"MODEL.DISTILL.{key} is .*Name each once"):
        build_model(small_cfg(**keys))


def test_a_loss_whose_terms_all_weigh_nothing_is_not_built():
    weights = {f"MODEL__DISTILL__PREDICTION_LOSS__{name}_WEIGHT": 0.0 for name in ("CLASS", "L1", "GIOU")}
    keys = {"MODEL__META_ARCHITECTURE": "DistillDetector", "MODEL__DISTILL__LOSSES": ["PredictionLoss"]}
    model = build_model(small_cfg(**keys, **weights, MODEL__DISTILL__MATCHERS=["AdaptiveMatcher"]))
    assert not model.losses and not model.matchers
