"""Every number and every word of detectron2 that is read here has a range or a list, or a reason to have none."""

from __future__ import annotations

from detr_distill.config.build import build_config
from detr_distill.config.detectron2_keys import ALLOWED, check_detectron2_keys
from detr_distill.config.keys import declared_keys, detectron2_defaults, flatten
from detr_distill.config.ranges import Each, Infinite, Range, Text, Words
from detr_distill.config.without_effect import REFUSED, UNREAD
from detr_distill.errors import ConfigError

import pytest
from helpers.golden_cases import DIGITS

# Of no fixed list, and what they name.
NAMES = {
    "OUTPUT_DIR": "a folder",
    "MODEL.ANCHOR_GENERATOR.NAME": "a registered class",
    "MODEL.BACKBONE.NAME": "a registered class",
    "MODEL.DEVICE": "a device",
    "MODEL.META_ARCHITECTURE": "a registered class",
    "MODEL.PROPOSAL_GENERATOR.NAME": "a registered class",
    "MODEL.ROI_BOX_HEAD.NAME": "a registered class",
    "MODEL.ROI_HEADS.NAME": "a registered class",
    "MODEL.ROI_MASK_HEAD.NAME": "a registered class",
    "MODEL.RPN.HEAD_NAME": "a registered class",
    "MODEL.WEIGHTS": "a file",
}
DEFAULTS = flatten(detectron2_defaults())


def is_read(name):
    nodes = [pattern.rstrip("*") for pattern in UNREAD]
    return (
        not name.startswith(tuple(nodes)) and name not in REFUSED and name not in dict(declared_keys("detr_distill."))
    )


def test_every_value_has_a_range_a_list_or_a_reason():
    without = {name for name, value in DEFAULTS.items() if is_read(name) and not isinstance(value, bool)}
    assert without - ALLOWED.keys() == NAMES.keys()
    assert ALLOWED.keys() <= DEFAULTS.keys()


def test_no_count_is_without_end():
    """Each would be built, or collected, for ever."""
    huge = 10**24 + 1
    checks = {name: declared.check for name, declared in declared_keys("detr_distill.") if is_count(declared.default)}
    checks |= {name: allowed.check for name, allowed in ALLOWED.items() if is_count(DEFAULTS[name])}
    for name, check in checks.items():
        if name != "DATASETS.LABELED_SEED":
            with pytest.raises(ConfigError, match=f"{name} is {huge}"):
                check(name, huge)
    assert len(checks) > 80


def is_count(default):
    return type(default) is int


def test_the_defaults_are_allowed():
    build_config("", [])


def outside(allowed):
    """One value that is not allowed."""
    if isinstance(allowed, Words):
        return "another"
    if isinstance(allowed, Each):
        return [outside(allowed.entry)] * (allowed.length or 1)
    if isinstance(allowed, Text):
        return 5
    if isinstance(allowed, Infinite):
        return outside(allowed.finite)
    assert isinstance(allowed, Range)
    return float("nan")


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_not_allowed_is_named(name):
    cfg = build_config("", [])
    for value in (outside(ALLOWED[name]), None if "WEIGHT_DECAY_" not in name and "BIAS_LR" not in name else "none"):
        node, last = cfg, name.split(".")[-1]
        for part in name.split(".")[:-1]:
            node = node[part]
        before, node[last] = node[last], value
        with pytest.raises(ConfigError, match=rf"{name} is .*\. (Give|Known: )"):
            check_detectron2_keys(cfg)
        node[last] = before
    check_detectron2_keys(cfg)


def test_none_may_mean_what_others_have():
    cfg = build_config("", ["SOLVER.WEIGHT_DECAY_NORM", "None", "SOLVER.BIAS_LR_FACTOR", "None"])
    assert cfg.SOLVER.WEIGHT_DECAY_NORM is None and cfg.SOLVER.BIAS_LR_FACTOR is None


def test_an_infinite_norm_is_one():
    cfg = build_config("", ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf"])
    assert float("inf") == cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE


def test_words_and_numbers_of_a_truth_value():
    """True is an int to Python, and none here."""
    with pytest.raises(ConfigError, match=r"is True\. Give 1 or more"):
        Range(1).check("KEY", True)


def test_the_shipped_configurations_are_allowed():
    """One of each kind; tests/test_configs.py builds them all."""
    for name in ("conditional_student", "faster_rcnn_student", "fcos_student"):
        build_config(str(DIGITS / f"{name}.yaml"), [])
