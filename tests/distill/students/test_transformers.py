"""A detector of transformers as a student: what it gives, and that its part of the step is its own."""

from __future__ import annotations

from unittest import mock

from detr_distill.checkpoint import save_weights, student_state_dict
from detr_distill.commands.predictor import load_predictor
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.hugging_face import CLASSES, LAYERS, SIZE, build_distiller, build_student, student_cfg

pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_it_learns_every_layer_from_a_teacher(kind, tmp_path):
    model = randomise(build_distiller(tmp_path, kind), spread=0.1)
    losses = model(make_inputs(), iteration=0)
    taught = {name for name in losses if name.startswith("loss_distill_class_adaptive")}
    assert taught == {"loss_distill_class_adaptive", *(f"loss_distill_class_adaptive_{k}" for k in range(LAYERS - 1))}
    sum(losses.values()).backward()
    assert [name for name, p in model.student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_weight_of_zero_trains_the_plain_detector(tmp_path):
    plain = build_student(tmp_path, "d_fine")
    model = build_distiller(tmp_path, "d_fine", MODEL__DISTILL__PREDICTION_LOSS__WEIGHT=0.0)
    model.student.load_state_dict(plain.state_dict())
    inputs, results = make_inputs(), []
    for detector in (plain, model):
        torch.manual_seed(3)
        results.append(detector(inputs))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_it_decodes_a_teachers_queries_beside_its_own(kind, tmp_path):
    """As an auxiliary group with the teacher's assignment, and as random queries that both sides decode."""
    keys = {"MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher", "FixedMatcher", "GeneralMatcher"]}
    keys["MODEL__DISTILL__GENERAL_MATCHER__NUM_QUERIES"] = 6
    model = randomise(build_distiller(tmp_path, kind, **keys), spread=0.1)
    losses = model(make_inputs(), iteration=0)
    for matcher in ("adaptive", "fixed", "general"):
        assert {f"loss_distill_class_{matcher}{suffix}" for suffix in ("", "_0", "_1")} <= losses.keys()
    assert "loss_giou_fixed_0" in losses and ("loss_fgl_fixed" in losses) == (kind == "d_fine")
    assert not any(name.endswith("general") and not name.startswith("loss_distill") for name in losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.matchers["FixedMatcher"].parameters())


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        ("FeatureLoss", {"IN_FEATURES": ["memory0"], "TEACHER_FEATURES": ["memory0"]}),
        ("FeatureLoss", {"IN_FEATURES": ["level2"], "TEACHER_FEATURES": ["level0"]}),
    ],
)
def test_its_maps_are_compared(loss, names, tmp_path):
    keys = {f"MODEL__DISTILL__FEATURE_LOSS__{key}": value for key, value in names.items()}
    keys |= {"MODEL__DISTILL__LOSSES": [loss], "MODEL__DISTILL__MATCHERS": []}
    model = randomise(build_distiller(tmp_path, "rt_detr_v2", **keys), spread=0.1)
    losses = model(make_inputs(sizes=((64, 64), (64, 64))), iteration=0)
    found = [value for name, value in losses.items() if name.startswith("loss_distill_feature")]
    assert found and all(value > 0 for value in found)
    sum(found).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.model.model.backbone.parameters())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"MODEL__DISTILL__LOSSES": ["AttentionLoss"]}, r"AttentionLoss asks for .*attention.*RTDetrV2"),
        ({"MODEL__DISTILL__MATCHERS": ["OverlapMatcher"]}, "this one is a RTDetrV2ForObjectDetection"),
    ],
)
def test_what_it_cannot_give_is_refused(keys, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        build_distiller(tmp_path, "rt_detr_v2", **keys)


def test_maps_and_objects_of_stretched_images_lie_on_each_other(tmp_path):
    """Corners are in the pixels that the maps show, and a teacher whose maps are compared sees the same images."""
    keys = {"MODEL__DISTILL__LOSSES": ["FocalGlobalLoss"], "MODEL__DISTILL__MATCHERS": []}
    keys |= {f"MODEL__DISTILL__FOCAL_GLOBAL_LOSS__{name}": ["level0"] for name in ("IN_FEATURES", "TEACHER_FEATURES")}
    model = build_distiller(tmp_path, "rt_detr_v2", **keys)
    seen = []
    model.teacher.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    inputs = make_inputs()
    losses = model(inputs, iteration=0)
    assert losses["loss_distill_object"] > 0
    step = seen[0]
    assert [entry["image"].shape for entry in step.batched_inputs] == [(3, SIZE, SIZE)] * 2
    for image, entry in enumerate(inputs):
        height, width = entry["image"].shape[-2:]
        expected = entry["instances"].gt_boxes.tensor * torch.tensor([SIZE / width, SIZE / height] * 2)
        assert torch.allclose(step.ground_truth.corners[image, : len(expected)], expected, atol=1e-4)
    assert torch.equal(step.ground_truth.boxes, read_ground_truth(inputs, "cpu").boxes)


def test_a_teacher_of_predictions_alone_sees_the_images_as_they_are(tmp_path):
    model, seen = build_distiller(tmp_path, "rt_detr_v2"), []
    model.teacher.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    inputs = make_inputs()
    model(inputs, iteration=0)
    assert all(shown["image"] is entry["image"] for shown, entry in zip(seen[0].batched_inputs, inputs, strict=True))


@torch.no_grad()
def test_once_trained_it_predicts_for_a_file_and_teaches(tmp_path):
    """As a teacher of a detector of another library, its queries included."""
    student = build_student(tmp_path, "rt_detr_v2").eval()
    names = [f"class {number}" for number in range(CLASSES)]
    save_weights(student_state_dict(student), tmp_path / "student.pth", names)
    cfg, inputs = student_cfg(tmp_path, "rt_detr_v2"), make_inputs()
    predictor = load_predictor(cfg, str(tmp_path / "student.pth"))
    expected = student.finish(student.start(inputs)).outputs["own"]
    assert predictor.class_names == tuple(names)
    assert torch.allclose(predictor.know(inputs).output.logits, expected.logits, atol=1e-5)

    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    keys = {
        "MODEL__META_ARCHITECTURE": "DistillDetector",
        "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(tmp_path / "teacher.yaml"),
        "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "student.pth"),
        "MODEL__DISTILL__TEACHER__CLASS_NAMES": names,
        "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher", "FixedMatcher"],
        "MODEL__DISTILL__LOSSES": ["PredictionLoss"],
    }
    with mock.patch("detr_distill.distill.teachers.frozen.training_class_names", return_value=names):
        model = build_model(small_cfg(**keys)).train()
    losses = model(inputs, iteration=0)
    assert {"loss_distill_class_adaptive", "loss_distill_box_fixed", "loss_class_fixed"} <= losses.keys()
