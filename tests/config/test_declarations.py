"""What a plug-in may declare: no key of another, of detectron2 or inside one, and no setting named like a method."""

from __future__ import annotations

import re

from detr_distill.config.build import default_config
from detr_distill.config.keys import Key, declare, declared_keys, key
from detr_distill.config.ranges import NOT_NEGATIVE
from detr_distill.distill.build import choose_plugins
from detr_distill.distill.losses import PredictionLoss
from detr_distill.distill.losses.base import DistillLoss
from detr_distill.distill.matchers import AdaptiveMatcher, OverlapMatcher
from detr_distill.distill.side import MAPS, ONE_TO_ONE, PREDICTIONS, Side
from detr_distill.errors import ConfigError
from detr_distill.registry import LOSS_REGISTRY

import pytest
from helpers.registrations import forgotten_afterwards


@pytest.fixture(autouse=True)
def _forget():
    with forgotten_afterwards():
        yield


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("SOLVER.BASE_LR",), "mine declares SOLVER.BASE_LR, which is detectron2's own key. Give it another name."),
        (("MODEL.RESNETS",), "mine declares MODEL.RESNETS, which is detectron2's own key. Give it another name."),
        (("SOLVER.BASE_LR.A",), "mine declares SOLVER.BASE_LR.A, but detectron2's key SOLVER.BASE_LR holds no others."),
        (("MINE.MODE", "MINE.MODE.X"), "mine declares MINE.MODE.X beside MINE.MODE, and a key cannot hold another."),
        (("MODEL.DISTILL",), "mine declares MODEL.DISTILL beside MODEL.DISTILL"),
    ],
)
def test_a_key_hides_no_other(keys, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        declare("mine", {name: Key(1.0, "mine") for name in keys})
    assert not [name for name, _ in declared_keys("mine")], "a refused declaration leaves nothing behind"
    assert default_config().SOLVER.BASE_LR == 0.001


def test_a_class_declares_a_key_once():
    with pytest.raises(ConfigError, match=r"TwiceLoss declares MINE.X twice\. Give each setting a key of its own"):

        @LOSS_REGISTRY.register()
        class TwiceLoss(Whole):
            one: float = key(1.0, "one", path="MINE.X")
            other: float = key(2.0, "other", path="MINE.X")


@pytest.mark.parametrize("name", ["forward", "training", "gives", "read_keys", "keys", "section", "needs"])
def test_a_setting_hides_no_method(name):
    taken = {"gives": Side.gives} if name == "gives" else {}
    with pytest.raises(ConfigError, match=f"HidingLoss has a setting called {name}, which modules have already"):
        type("HidingLoss", (type("Given", (Whole,), taken),), {name: key(1.0, "hides", NOT_NEGATIVE)})


def test_a_plain_attribute_is_another_default():
    @LOSS_REGISTRY.register()
    class HeavyLoss(Whole):
        weight = 5.0

    assert default_config().MODEL.DISTILL.HEAVY_LOSS.WEIGHT == HeavyLoss().weight == 5.0
    assert dict(declared_keys())["MODEL.DISTILL.HEAVY_LOSS.WEIGHT"].allowed is NOT_NEGATIVE
    with pytest.raises(ConfigError, match=r"HEAVY_LOSS.WEIGHT is -1\.0"):
        HeavyLoss(weight=-1.0)


def test_a_weight_of_zero_counts_under_any_node():
    @LOSS_REGISTRY.register()
    class ElsewhereLoss(Whole, node="MODEL.MINE.ELSEWHERE"):
        pass

    cfg = default_config()
    cfg.MODEL.DISTILL.LOSSES, cfg.MODEL.DISTILL.MATCHERS = ["ElsewhereLoss"], []
    assert choose_plugins(cfg).losses == {"ElsewhereLoss": ElsewhereLoss}
    cfg.MODEL.MINE.ELSEWHERE.WEIGHT = 0.0
    assert not choose_plugins(cfg).losses


def test_what_is_no_new_class_is_refused():
    with pytest.raises(ConfigError, match=r"is no class\. Let a class inherit from .*DistillLoss"):
        LOSS_REGISTRY.register(lambda: None)
    with pytest.raises(ConfigError, match=r"PredictionLoss is registered already, by detr_distill\.distill\.losses"):
        LOSS_REGISTRY.register(type("PredictionLoss", (PredictionLoss,), {}))


@pytest.mark.parametrize("matcher", [AdaptiveMatcher, OverlapMatcher])
@pytest.mark.parametrize(
    ("student", "teacher", "who"), [((), (PREDICTIONS,), "student"), ((PREDICTIONS,), (), "teacher")]
)
def test_a_matcher_of_predictions_asks_both_sides_for_them(matcher, student, teacher, who):
    one_to_one = {ONE_TO_ONE} if matcher is AdaptiveMatcher else set()
    sides = Given({MAPS, *student, *one_to_one}), Given({MAPS, *teacher})
    message = f"^MODEL.DISTILL.MATCHERS: {matcher.__name__} asks for predictions, which the {who}'s Given does not have"
    with pytest.raises(ConfigError, match=message):
        matcher.from_config(default_config(), *sides)


class Whole(DistillLoss):
    """Defines all that is asked for."""

    def forward(self, student, knowledge, matches):
        return {}


class Given(Side):
    """Gives what it is told to."""

    classes = "some"

    def __init__(self, words):
        self.words = frozenset(words)

    @property
    def gives(self):
        return self.words
