"""Values under MODEL.DISTILL and MODEL.DETR that cannot be are refused in words, whichever parts are in use."""

from __future__ import annotations

import math
import re
from functools import cache

from detr_distill.config.build import default_config
from detr_distill.config.keys import check_keys, declared_keys
from detr_distill.config.ranges import AnyText, Range, Words
from detr_distill.errors import ConfigError

import pytest
from detectron2.modeling import build_model
from helpers.builders import small_cfg

SECTIONS = ("MODEL.DISTILL", "MODEL.DETR")
SHIPPED = {
    name: key for name, key in declared_keys("detr_distill.") if name.startswith(("MODEL.DISTILL.", "MODEL.DETR."))
}
# Keys that hold numbers without a range of their own, and why.
WITHOUT_RANGE = {
    "MODEL.DISTILL.BALANCE.RANGE": "two factors in order, which ShareBalance checks together",
    "MODEL.DISTILL.SCHEDULE.STEPS": "iterations, fractions or a word, which Schedule reads",
}
# Keys that hold a word of no fixed list, and what it names.
WITHOUT_WORDS = {
    **{f"MODEL.DETR.{part}.NAME": "a plug-in" for part in ("NECK", "ENCODER", "DECODER", "QUERIES")},
    "MODEL.DISTILL.STUDENT_ARCHITECTURE": "a detector",
    "MODEL.DISTILL.TEACHER.NAME": "a plug-in",
    "MODEL.DISTILL.TEACHER.CONFIG_FILE": "a file",
    "MODEL.DISTILL.TEACHER.WEIGHTS": "a file",
    "MODEL.DISTILL.START_WEIGHTS": "a file",
    "MODEL.DISTILL.FOUNDATION_MODEL.NETWORK": "a network of timm",
    "MODEL.DISTILL.FOUNDATION_MODEL.OUT_FEATURE": "a stage of it",
}
IMPOSSIBLE = {
    "DISTILL.EMA_TEACHER.DECAY": 1.0,
    "DISTILL.LABEL_ENCODER.NUM_HEADS": 0,
    "DISTILL.LABEL_ENCODER.REFINEMENT_KERNEL": 2,
    "DISTILL.LABEL_ENCODER.HEAD_SHARE": 0.0,
    "DISTILL.LABEL_MAP_ENCODER.WIDTH": 1,
    "DISTILL.BALANCE.ITERATIONS": -1,
    "DISTILL.BALANCE.TARGET_SHARE": 1.0,
    "DISTILL.ADAPTIVE_MATCHER.COST_L1": -1.0,
    "DISTILL.OVERLAP_MATCHER.MIN_IOU": 2.0,
    "DISTILL.PREDICTION_LOSS.TEMPERATURE": 0.0,
    "DISTILL.PREDICTION_LOSS.GIOU_WEIGHT": -1.0,
    "DISTILL.FEATURE_LOSS.ADAPTER_LAYERS": 4,
    "DISTILL.FEATURE_LOSS.ADAPTER_KERNEL": 0,
    "DISTILL.FEATURE_LOSS.WEIGHT": float("nan"),
    "DISTILL.MASKED_GENERATION_LOSS.MASK_RATIO": 1.0,
    "DISTILL.TARGET_AWARE_LOSS.EXPONENT": 1.5,
    "DISTILL.SAMPLED_ATTENTION_LOSS.GRID_SIZE": 1,
    "DETR.LOSS.CLASS_WEIGHT": -1.0,
    "DETR.MATCHER.COST_GIOU": float("nan"),
}


def outside(allowed: Range | Words) -> list:
    """Values beyond each end, the ends that do not belong to it, and what is no number; or a word that is none."""
    if isinstance(allowed, Words):
        return ["another"]
    if isinstance(allowed, AnyText):
        return [3, 0.5]
    ends = [allowed.least - 1, allowed.most + 1, allowed.above, allowed.below]
    return [*(end for end in ends if math.isfinite(end)), math.inf, math.nan, "many", *([4] if allowed.odd else [])]


@cache
def plain_cfg(section: str):
    """Of a model that reads a section; to be copied."""
    return small_cfg(**({"MODEL__META_ARCHITECTURE": "DistillDetector"} if section == "MODEL.DISTILL" else {}))


def build_with(name: str, value: object) -> None:
    section = next(part for part in SECTIONS if name.startswith(f"{part}."))
    cfg = plain_cfg(section).clone()
    *parents, last = name.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[last] = value
    build_model(cfg)


def holds_numbers(default: object) -> bool:
    """Of a list, whether its first entry is one."""
    entry = default[0] if isinstance(default, tuple) and default else default
    return isinstance(entry, int | float) and not isinstance(entry, bool)


def test_every_number_has_a_range_or_a_reason():
    without = {name for name, key in SHIPPED.items() if holds_numbers(key.default) and key.allowed is None}
    assert without | {"MODEL.DISTILL.SCHEDULE.STEPS"} == set(WITHOUT_RANGE), "an empty list does not show what it holds"


def test_every_word_has_a_list_or_a_reason():
    without = {
        name for name, key in SHIPPED.items() if isinstance(key.default, str) and not isinstance(key.allowed, Words)
    }
    assert without == set(WITHOUT_WORDS)


def test_the_defaults_are_allowed():
    for section in SECTIONS:
        check_keys(default_config(), section)


@pytest.mark.parametrize("name", [name for name, key in SHIPPED.items() if key.allowed is not None])
def test_what_is_not_allowed_is_named_before_anything_is_built(name):
    """With its key, the value and what may stand there; of a list the entry."""
    key = SHIPPED[name]
    remedy = "Known: " if isinstance(key.allowed, Words) else "Give "
    for value in outside(key.allowed):
        in_list = isinstance(key.default, tuple)
        start = f"{'An entry of ' if in_list else ''}{name} is {value!r}. {remedy}"
        with pytest.raises(ConfigError, match=f"^{re.escape(start)}.+\\.$"):
            build_with(name, [value] if in_list else value)


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_a_number_outside_its_range_is_named(key):
    with pytest.raises(ConfigError, match=f"^MODEL.{key} is {IMPOSSIBLE[key]}. Give "):
        build_with(f"MODEL.{key}", IMPOSSIBLE[key])


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
