"""The training step: what reaches the student, what stays outside, and what a zero weight leaves behind."""

from __future__ import annotations

import copy

from detr_distill.distill.students.base import StudentStep
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.host_reads import host_reads
from helpers.steps import train_steps

MATCHERS = [["AdaptiveMatcher"], ["FixedMatcher"], ["AdaptiveMatcher", "FixedMatcher"]]


@pytest.mark.parametrize("matchers", MATCHERS)
def test_step_gives_detection_and_distillation_losses(build_distiller, wide_teacher, matchers, inputs):
    model = build_distiller(wide_teacher, MODEL__DISTILL__MATCHERS=matchers)
    losses = model(inputs)
    groups = {"AdaptiveMatcher": "adaptive", "FixedMatcher": "fixed"}
    for matcher, name in groups.items():
        for term in ("class", "box", "giou", "self_attention", "cross_attention"):
            assert (f"loss_distill_{term}_{name}" in losses) == (matcher in matchers)
    assert ("loss_class_fixed_0" in losses) == ("FixedMatcher" in matchers)
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_teacher_stays_outside(build_distiller, wide_teacher, inputs):
    model = build_distiller(wide_teacher)
    teacher = model.teacher.detector
    before = copy.deepcopy(teacher.state_dict())
    assert all(key.startswith(("student.", "matchers.")) for key in model.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    model.train()
    assert not any(module.training for module in teacher.modules())
    sum(model(inputs).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    model.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in teacher.parameters()), "the teacher follows .to()"


def test_inference_is_the_student_alone(build_distiller, wide_teacher):
    model = build_distiller(wide_teacher).eval()
    plain = build_model(small_cfg()).eval()
    plain.load_state_dict({k.removeprefix("student."): v for k, v in model.state_dict().items() if "student." in k})
    inputs = make_inputs(labels=False)
    for a, b in zip(model(inputs), plain(inputs), strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_zero_weight_trains_bit_for_bit_like_the_plain_student(wide_teacher, inputs):
    dropout = {"MODEL__DETR__DROPOUT": 0.1}
    torch.manual_seed(7)
    plain = build_model(small_cfg(**dropout)).train()
    after_build = torch.get_rng_state()
    zero = {
        "MODEL__DISTILL__PREDICTION_LOSS__WEIGHT": 0.0,
        "MODEL__DISTILL__ATTENTION_LOSS__WEIGHT": 0.0,
        "MODEL__DISTILL__FIXED_MATCHER__LOSS_WEIGHT": 0.0,
    }
    torch.manual_seed(7)
    distilled = build_model(small_cfg(**dropout, **wide_teacher, **zero)).train()
    assert torch.equal(after_build, torch.get_rng_state())
    expected, found = train_steps(plain, inputs), train_steps(distilled, inputs)
    assert expected[0] == found[0] and torch.equal(expected[1], found[1])
    for key, value in plain.state_dict().items():
        assert torch.equal(value, distilled.state_dict()["student." + key]), key


def test_teacher_present_but_weightless_leaves_the_student_alone(build_distiller, wide_teacher, inputs):
    """With the teacher running and every loss of it scaled to nothing, adaptive matching changes not one bit."""
    dropout = {"MODEL__DETR__DROPOUT": 0.1}
    plain = build_model(small_cfg(**dropout)).train()
    model = build_distiller(
        wide_teacher, MODEL__DISTILL__MATCHERS=["AdaptiveMatcher"], MODEL__DISTILL__LOSSES=["PredictionLoss"], **dropout
    )
    model.losses["PredictionLoss"].weight = 0.0
    plain.load_state_dict({k.removeprefix("student."): v for k, v in model.state_dict().items()})
    expected, found = train_steps(plain, inputs), train_steps(model, inputs)
    assert expected[0] == found[0] and torch.equal(expected[1], found[1])
    assert all(torch.equal(v, model.state_dict()["student." + k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize("matchers", MATCHERS)
def test_whole_step_reads_the_device_once(build_distiller, wide_teacher, matchers):
    model = build_distiller(wide_teacher, MODEL__DISTILL__MATCHERS=matchers)
    inputs = make_inputs()
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]


@pytest.mark.parametrize(
    "teacher",
    [
        {"MODEL__DETR__HIDDEN_DIM": 24, "MODEL__DETR__NUM_HEADS": 4},
        {"MODEL__DETR__NUM_QUERIES": 3},
        {"MODEL__DETR__DECODER__NUM_LAYERS": 5},
        {"MODEL__DETR__DECODER__NAME": "DetrDecoder", "MODEL__DETR__LOSS__CLASSIFICATION": "softmax"},
        {"MODEL__DETR__IN_FEATURES": ["stage2"]},
        {"INPUT__FORMAT": "RGB"},
    ],
)
def test_unequal_teachers_work(build_distiller, save_teacher, teacher, inputs):
    model = build_distiller(save_teacher(**teacher))
    losses = model(inputs)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_channel_order_of_the_teacher(build_distiller, save_teacher, inputs):
    straight = build_distiller(save_teacher()).teacher
    flipped = build_distiller(save_teacher(INPUT__FORMAT="RGB")).teacher
    other = [{**x, "image": x["image"].flip(0)} for x in inputs]
    seen, expected = flipped(StudentStep(inputs), frozenset()), straight(StudentStep(other), frozenset())
    assert torch.equal(seen.output.logits, expected.output.logits), (
        "an RGB teacher sees the BGR student's images with channels turned"
    )


def test_teacher_weights_are_checked(save_teacher, tmp_path):
    keys = save_teacher()
    with pytest.raises(CheckpointError, match=r"TEACHER.WEIGHTS"):
        build_model(small_cfg(**{**keys, "MODEL__DISTILL__TEACHER__WEIGHTS": ""}))
    with pytest.raises(ConfigError, match="does not exist"):
        build_model(small_cfg(**{**keys, "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "none.pth")}))
    weights = torch.load(keys["MODEL__DISTILL__TEACHER__WEIGHTS"], weights_only=True)["model"]
    weights.pop("queries.position.weight")
    weights["surplus"] = torch.zeros(1)
    torch.save({"model": weights}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"(?s)queries\.position\.weight.*surplus"):
        build_model(small_cfg(**{**keys, "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "bad.pth")}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL__DISTILL__MATCHERS", ["NoSuchMatcher"], "AdaptiveMatcher, .*FixedMatcher"),
        ("MODEL__DISTILL__LOSSES", ["NoSuchLoss"], "AttentionLoss, .*PredictionLoss"),
        ("MODEL__DISTILL__TEACHER__NAME", "NoSuchTeacher", "FrozenDetector, .*NoTeacher"),
        ("MODEL__DISTILL__TEACHER__NAME", "", "learn from a teacher"),
        ("MODEL__DISTILL__TEACHER__CONFIG_FILE", "", "CONFIG_FILE is empty"),
        ("MODEL__DISTILL__TEACHER_LAYER", "first", "'aligned', 'last'"),
        ("MODEL__DISTILL__MATCHERS", [], "no pairs"),
        ("MODEL__DISTILL__PREDICTION_LOSS__GROUPS", ["fixd"], "fixd"),
        ("MODEL__DISTILL__PREDICTION_LOSS__WEIGHT", -1.0, "WEIGHT is -1"),
        ("MODEL__DISTILL__STUDENT_ARCHITECTURE", "DistillDetector", "Known, .*: DenseDetector, DetrDetector"),
        (
            "MODEL__DISTILL__STUDENT_ARCHITECTURE",
            "PanopticFPN",
            "overrides .* GeneralizedRCNN.*student_for",
        ),
        ("MODEL__DISTILL__STUDENT_ARCHITECTURE", "NoSuchDetector", "Known: .*DetrDetector"),
        ("MODEL__DISTILL__PREDICTION_LOSS__DIVERGENCE", "l7", "'focal_bce', 'bce', 'kl'"),
        ("MODEL__DISTILL__ATTENTION_LOSS__DIVERGENCE", "l7", "'kl', 'mse'"),
        ("MODEL__DISTILL__FIXED_MATCHER__TEACHER_ASSIGNMENT", "some", "'last', 'all', 'none'"),
    ],
)
def test_bad_keys_are_named_with_the_known_values(equal_teacher, inputs, key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**{**equal_teacher, key: value})).train()(inputs)


def test_what_no_loss_uses_is_not_built(build_distiller, equal_teacher, inputs):
    """A matcher that no loss compares and that decodes no supervised group costs nothing."""
    fixed_only = {
        "MODEL__DISTILL__PREDICTION_LOSS__GROUPS": ["FixedMatcher"],
        "MODEL__DISTILL__LOSSES": ["PredictionLoss"],
    }
    assert list(build_distiller(equal_teacher, **fixed_only).matchers) == ["FixedMatcher"]
    assert "loss_distill_class_fixed" in build_distiller(equal_teacher, **fixed_only)(inputs)
    no_maps = {
        "MODEL__DISTILL__ATTENTION_LOSS__SELF_WEIGHT": 0.0,
        "MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0,
        "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
    }
    assert list(build_distiller(equal_teacher, **no_maps).losses) == ["PredictionLoss"]
    alone = build_distiller(equal_teacher, **no_maps, MODEL__DISTILL__LOSSES=["AttentionLoss"])
    assert not alone.matchers and type(alone.teacher).__name__ == "NoTeacher"


def test_a_taught_student_may_have_training_groups(build_distiller, wide_teacher):
    """Beside the teacher's: their losses are the student's own, and what it learns from the teacher does not change."""
    keys = {"MODEL__DETR__TRAINING_GROUPS": ["GroupQueries", "HybridQueries"]}
    sizes = {"MODEL__DETR__GROUP_QUERIES__NUM_GROUPS": 3, "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": 12}
    model, inputs = build_distiller(wide_teacher, **keys, **sizes), make_inputs()
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"], "one read of the device a step"
    assert {f"loss_class_{group}_0" for group in ("fixed", "group_1", "group_2", "hybrid")} <= set(losses)
    assert all(p.grad is not None for p in model.parameters())
    model.student.training_groups = torch.nn.ModuleDict()
    for name, value in model(inputs).items():
        share = 3 if "distill" not in name and "fixed" not in name else 1  # the mean over three groups
        assert torch.allclose(value, share * losses[name], rtol=1e-3, atol=1e-6), name
