"""Frozen teachers that are no DETR: detectron2's detectors, asked for their feature maps."""

from __future__ import annotations

from detr_distill.distill.students.base import StudentStep
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, small_cfg
from helpers.convolutional import dense_cfg, rcnn_cfg

TEACHERS = {
    "retinanet": lambda: dense_cfg("RetinaNet"),
    "fcos": lambda: dense_cfg("FCOS"),
    "faster_rcnn": rcnn_cfg,
    "cascade_rcnn": lambda: rcnn_cfg("CascadeROIHeads"),
}
LOSSES = ["FeatureLoss", "FocalGlobalLoss", "MaskedGenerationLoss"]


@pytest.fixture
def taught_by(tmp_path):
    """Makes a configuration's detector learn from another configuration's, with random weights."""

    def teach(cfg, teacher_cfg, **keys):
        (tmp_path / "teacher.yaml").write_text(teacher_cfg.dump())
        torch.manual_seed(3)
        plain = build_model(teacher_cfg).eval()
        torch.save({"model": plain.state_dict()}, tmp_path / "teacher.pth")
        node = cfg.MODEL.DISTILL
        node.STUDENT_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE, "DistillDetector"
        node.TEACHER.CONFIG_FILE = str(tmp_path / "teacher.yaml")
        node.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
        node.MATCHERS, node.LOSSES = [], LOSSES
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg, plain

    return teach


@pytest.mark.parametrize("case", TEACHERS)
def test_a_teacher_gives_the_maps_that_its_head_reads(case, taught_by):
    cfg, plain = taught_by(TEACHERS[case](), TEACHERS[case]())
    model = build_model(cfg).train()
    teacher, inputs = model.teacher, make_inputs(labels=False)
    knowledge = teacher(StudentStep(inputs), frozenset())
    with torch.no_grad():
        expected = plain.backbone(plain.preprocess_image(inputs).tensor)
    assert list(knowledge.features) == list(teacher.feature_channels) and set(knowledge.features) <= set(expected)
    for name, values in knowledge.features.items():
        assert (values - expected[name]).abs().max() < 1e-4 * expected[name].abs().max() and not values.requires_grad
    assert knowledge.output is None and knowledge.queries is None and knowledge.label_cost is None
    assert not teacher.detector.training, "it stays in eval mode"
    assert not [name for name in model.state_dict() if name.startswith("teacher.")]


@pytest.mark.parametrize("case", ["retinanet", "faster_rcnn"])
def test_a_step_teaches_a_student_of_the_same_kind(case, taught_by):
    model = build_model(taught_by(TEACHERS[case](), TEACHERS[case]())[0]).train()
    before = {name: values.clone() for name, values in model.teacher.detector.state_dict().items()}
    with EventStorage():
        losses = model(make_inputs(counts=(2, 0)))
    distilled = [name for name in losses if "distill" in name]
    assert sorted(distilled) == [
        f"loss_distill_{term}" for term in ("attention", "background", "feature", "generation", "object", "relation")
    ]
    sum(losses[name] for name in distilled).backward()
    touched = [name for name, p in model.student.backbone.named_parameters() if p.requires_grad]
    assert touched and all(model.student.backbone.get_parameter(name).grad is not None for name in touched)
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    after = model.teacher.detector.state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_detr_and_a_pyramid_teach_each_other(reverse, taught_by):
    """Their maps have other names, widths and sizes."""
    pairs = [small_cfg(), dense_cfg("RetinaNet")]
    names = ["level0"], ["p3"]
    if reverse:
        pairs, names = pairs[::-1], names[::-1]
    node = "MODEL__DISTILL__{}__{}"
    keys = {node.format(loss, "IN_FEATURES"): names[0] for loss in ("FEATURE_LOSS", "FOCAL_GLOBAL_LOSS")}
    keys |= {node.format(loss, "TEACHER_FEATURES"): names[1] for loss in ("FEATURE_LOSS", "FOCAL_GLOBAL_LOSS")}
    cfg, _ = taught_by(*pairs, **keys, MODEL__DISTILL__LOSSES=LOSSES[:2])
    model = build_model(cfg).train()
    with EventStorage():
        losses = model(make_inputs())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values()) and "loss_distill_feature" in losses
    assert all(p.grad is not None for p in model.losses.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__DISTILL__MATCHERS": ["FixedMatcher"]}, "Remove FixedMatcher from MATCHERS"),
        ({"MODEL__DISTILL__LOSSES": ["PredictionLoss"]}, "no pairs"),
        ({"MODEL__DISTILL__LOSSES": ["AttentionLoss"]}, "no pairs"),
    ],
)
def test_what_needs_queries_is_refused_when_built(keys, message, taught_by):
    cfg, _ = taught_by(small_cfg(), dense_cfg("RetinaNet"), MODEL__DISTILL__LOSSES=["PredictionLoss"], **{
        key: value for key, value in keys.items() if key != "MODEL__DISTILL__LOSSES"
    })  # fmt: skip
    cfg.MODEL.DISTILL.LOSSES = keys.get("MODEL__DISTILL__LOSSES", cfg.MODEL.DISTILL.LOSSES)
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_a_network_that_is_no_known_detector_is_refused(taught_by):
    cfg, _ = taught_by(dense_cfg("RetinaNet"), dense_cfg("RetinaNet"))
    levels = "('p3', 'p4', 'p5', 'p6', 'p7')"
    cfg.MODEL.DISTILL.TEACHER.OPTS = ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.IN_FEATURES", levels]
    with pytest.raises(ConfigError, match="describes a ProposalNetwork; FrozenDetector takes one of DenseDetector"):
        build_model(cfg)
