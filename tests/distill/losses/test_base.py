"""What every loss keeps: its interface, its keys, and earlier names of its settings."""

from __future__ import annotations

from detr_distill.config.build import default_config
from detr_distill.config.keys import declared_keys, key
from detr_distill.config.ranges import NOT_NEGATIVE, Words
from detr_distill.config.reference import write_reference
from detr_distill.distill.losses import AttentionLoss, FeatureLoss, PredictionLoss, QueryRelationLoss
from detr_distill.distill.losses.base import DistillLoss
from detr_distill.distill.losses.map_loss import LevelLoss
from detr_distill.distill.losses.pair_loss import PairLoss
from detr_distill.errors import ConfigError
from detr_distill.registry import LOSS_REGISTRY

import pytest
from helpers.distill.one_image import SAME
from helpers.feature_maps import map_pairs
from helpers.registrations import forgotten_afterwards
from torch import nn

DISTANCE = "MODEL.DISTILL.HINT_LOSS.DISTANCE"
HINT = {"MODEL__DISTILL__LOSSES": ["HintLoss"], "MODEL__DISTILL__MATCHERS": []}


@pytest.fixture(autouse=True)
def _forget_plugins():
    """What a test registers, and its keys, are unknown again after it."""
    with forgotten_afterwards():
        yield


class Whole(DistillLoss):
    """Defines all that is asked for."""

    def forward(self, student, knowledge, matches):
        values = [values.square().mean() for values in student.maps.values()]
        return {"loss_distill_hint": self.weight * sum(values)}


def no_loss():
    class HintLoss(nn.Module): ...

    return HintLoss


def without_forward():
    class HintLoss(DistillLoss): ...

    return HintLoss


def without_terms():
    class HintLoss(PairLoss): ...

    return HintLoss


def without_level_terms():
    class HintLoss(LevelLoss): ...

    return HintLoss


def without_name():
    class NamedLoss(Whole):
        declares = ("term", "unit")

    class HintLoss(NamedLoss):
        unit = "pixels"

    return HintLoss


def with_a_key_of_another():
    class HintLoss(Whole):
        distance: float = key(1.0, "of another loss", path="MODEL.DISTILL.SAMPLED_ATTENTION_LOSS.DIRECTIONS")

    return HintLoss


def with_a_negative_default():
    class HintLoss(Whole):
        distance: float = key(-1.0, "never below 0", NOT_NEGATIVE)

    return HintLoss


def with_an_unknown_word():
    class HintLoss(Whole):
        distance: str = key("energy", "one of two", Words("l1", "l2"))

    return HintLoss


def with_a_negative_entry():
    class HintLoss(Whole):
        distance: tuple[float, ...] = key((1.0, -1.0), "never below 0", NOT_NEGATIVE)

    return HintLoss


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (no_loss, r"HintLoss is no DistillLoss\. Let it inherit from detr_distill\.distill\.losses\.base\.DistillLoss"),
        (
            without_forward,
            r"HintLoss does not define forward\(\); see detr_distill\.distill\.losses\.base\.DistillLoss",
        ),
        (without_terms, r"HintLoss does not define terms\(\)"),
        (without_level_terms, r"HintLoss does not define level_terms\(\)"),
        (without_name, r"HintLoss does not set term;"),
        (
            with_a_key_of_another,
            r"SAMPLED_ATTENTION_LOSS\.DIRECTIONS is declared twice, by detr_distill\S*\.SampledAttentionLoss and by "
            r"\S*HintLoss\. Give one of them another name",
        ),
        (with_a_negative_default, rf"HintLoss declares a default .*: {DISTANCE} is -1\.0\. Give 0 or more"),
        (with_an_unknown_word, rf"HintLoss declares a default .*: {DISTANCE} is 'energy'\. Known: 'l1', 'l2'"),
        (with_a_negative_entry, rf"HintLoss declares a default .*: An entry of {DISTANCE} is -1\.0"),
    ],
)
def test_registering_refuses_what_cannot_work(define, message):
    plugin = define()
    with pytest.raises(ConfigError, match=message):
        LOSS_REGISTRY.register(plugin)
    assert "HintLoss" not in LOSS_REGISTRY


def test_one_key_of_two_new_losses_is_refused():
    class FirstLoss(Whole):
        margin: float = key(1.0, "that costs nothing", path="MODEL.DISTILL.MARGIN")

    class SecondLoss(Whole):
        margin: float = key(1.0, "that costs nothing", path="MODEL.DISTILL.MARGIN")

    class SharingLoss(Whole):
        margin: float = FirstLoss.keys["margin"]

    LOSS_REGISTRY.register(FirstLoss)
    LOSS_REGISTRY.register(SharingLoss)
    with pytest.raises(
        ConfigError, match=r"MODEL\.DISTILL\.MARGIN is declared twice, by \S*FirstLoss and by \S*Second"
    ):
        LOSS_REGISTRY.register(SecondLoss)
    assert default_config().MODEL.DISTILL.MARGIN == 1.0


def register_hint():
    @LOSS_REGISTRY.register()
    class HintLoss(Whole):
        distance: float = key(0.5, "up to which a hint costs nothing", NOT_NEGATIVE)

    return HintLoss


def test_a_loss_brings_its_keys_along():
    assert "HINT_LOSS" not in default_config().MODEL.DISTILL and "HINT_LOSS" not in write_reference()
    plugin = register_hint()
    assert default_config().MODEL.DISTILL.HINT_LOSS == {"WEIGHT": 1.0, "DISTANCE": 0.5}
    assert dict(declared_keys())[DISTANCE].meaning == "up to which a hint costs nothing"
    assert DISTANCE not in write_reference()  # docs/configs.md is of this package alone
    assert plugin().distance == 0.5 and plugin(distance=2.0, weight=3.0).weight == 3.0
    with pytest.raises(ConfigError, match=rf"{DISTANCE} is -1\.0\. Give 0 or more"):
        plugin(distance=-1.0)


def test_a_loss_is_built_with_its_keys(build_distiller, equal_teacher, inputs):
    register_hint()
    model = build_distiller(equal_teacher, HINT, MODEL__DISTILL__HINT_LOSS__DISTANCE=2.0)
    assert model.losses["HintLoss"].distance == 2.0
    doubled = build_distiller(equal_teacher, HINT, MODEL__DISTILL__HINT_LOSS__WEIGHT=2.0)
    values = [built(inputs)["loss_distill_hint"].item() for built in (model, doubled)]
    assert values[0] > 0 and values[1] == pytest.approx(2 * values[0])
    assert not build_distiller(equal_teacher, HINT, MODEL__DISTILL__HINT_LOSS__WEIGHT=0.0).losses


@pytest.mark.parametrize("used", [HINT, {}], ids=["used", "not used"])
def test_keys_of_a_loss_are_checked_when_a_model_is_built(build_distiller, equal_teacher, used):
    register_hint()
    with pytest.raises(ConfigError, match=rf"{DISTANCE} is -1\.0\. Give 0 or more"):
        build_distiller(equal_teacher, used, MODEL__DISTILL__HINT_LOSS__DISTANCE=-1.0)


@pytest.mark.parametrize(
    ("loss", "parts", "earlier", "name", "value"),
    [
        (AttentionLoss, {}, "kind", "divergence", "mse"),
        (AttentionLoss, {}, "weight_self", "self_weight", 0.5),
        (AttentionLoss, {}, "weight_cross", "cross_weight", 0.5),
        (FeatureLoss, {"pairs": map_pairs()}, "kind", "divergence", "cosine"),
        (PredictionLoss, {"classes": SAME}, "kind", "divergence", "bce"),
        (PredictionLoss, {"classes": SAME}, "weight_class", "class_weight", 3.0),
        (PredictionLoss, {"classes": SAME}, "weight_l1", "l1_weight", 3.0),
        (PredictionLoss, {"classes": SAME}, "weight_giou", "giou_weight", 3.0),
        (QueryRelationLoss, {"widths": (4, 4)}, "kind", "divergence", "contrastive"),
    ],
)
def test_earlier_names_of_settings_work_and_warn(loss, parts, earlier, name, value):
    with pytest.warns(FutureWarning, match=rf"{loss.__name__}\({earlier}=\.\.\.\) is now {name}="):
        built = loss(**parts, **{earlier: value})
    assert getattr(built, name) == value != loss.keys[name].default


def test_unknown_settings_are_named_beside_the_known():
    with pytest.raises(TypeError, match=r"AttentionLoss has no setting 'wieght'\. Known: ") as error:
        AttentionLoss(wieght=1.0)
    assert str(error.value).endswith(f"Known: {', '.join(AttentionLoss.keys)}.")
    own = {"divergence", "self_weight", "cross_weight", "kernel"}
    assert {"weight", "groups", "layers"} | own == set(AttentionLoss.keys)
