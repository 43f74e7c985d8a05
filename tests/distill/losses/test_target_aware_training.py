"""Training steps of target-aware distillation between all kinds of pairs."""

from __future__ import annotations

from detr_distill.distill.losses.target_masks import query_quality
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.convolutional import dense_cfg
from helpers.distill.families import ADAMIXER, CONDITIONAL, DEFORMABLE, LARGER, distiller
from helpers.distill.target_aware_case import MASK_NAME, NAME
from helpers.host_reads import host_reads

ALONE = {"DISTILL__LOSSES": ["TargetAwareLoss"], "DISTILL__MATCHERS": []}
READ = {**ALONE, "DISTILL__TARGET_AWARE_LOSS__PROJECTION": "teacher"}
CASES = {
    "single_scale": (CONDITIONAL, CONDITIONAL, ALONE),
    "single_scale_read": (CONDITIONAL, CONDITIONAL, READ),
    "multi_scale": (DEFORMABLE, DEFORMABLE, ALONE),
    "multi_scale_read": (DEFORMABLE, DEFORMABLE, READ),
    "encoder_free": (ADAMIXER, ADAMIXER, ALONE),
    "teacher_without_encoder": (ADAMIXER, DEFORMABLE, ALONE),
    "student_without_encoder": (DEFORMABLE, ADAMIXER, ALONE),
    "more_levels": (CONDITIONAL, DEFORMABLE, ALONE),
    "fewer_levels": (DEFORMABLE, CONDITIONAL, ALONE),
    "neck": (DEFORMABLE, DEFORMABLE, {**ALONE, "DISTILL__TARGET_AWARE_LOSS__FEATURES": "neck"}),
}


def step(model, counts=(2, 3)):
    losses = model(make_inputs(counts=counts))
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_every_kind_of_pair(case, tmp_path):
    """Another width, depth and number of queries; padded images; the encoder learns, if it is compared."""
    teacher, student, keys = CASES[case]
    model = distiller(tmp_path, teacher, student, LARGER, **keys)
    losses = step(model)
    own = {name: value.item() for name, value in losses.items() if "_target_" in name}
    assert set(own) == ({NAME} if keys is READ else {NAME, MASK_NAME}) and all(value > 0 for value in own.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    model.zero_grad()
    model(make_inputs())[NAME].backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {"backbone", "input_projection", "TargetAwareLoss"}
    encoded = case != "neck" and any(True for _ in model.student.encoder.parameters())
    assert reached == (parts | {"encoder"} if encoded else parts)
    parts = {"adapter"} if keys is READ else {"adapter", "mask_projection"}
    assert {name.split(".")[2] for name in model.state_dict() if name.startswith("losses.")} == parts
    with torch.no_grad():
        assert len(model.eval()(make_inputs(labels=False))) == 2


def test_batches_without_objects(tmp_path):
    model = distiller(tmp_path, ADAMIXER, ADAMIXER, LARGER, **ALONE)
    losses = step(model, counts=(0, 0))
    assert losses[NAME] == 0 and losses[MASK_NAME] == 0
    assert all(value.isfinite() for value in step(model, counts=(0, 2)).values())


def test_grids_of_other_strides(tmp_path):
    keys = {**LARGER, "DETR__IN_FEATURES": ["stage2"]}
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, keys, **ALONE)
    assert step(model)[NAME] > 0


def test_weight_zero_removes_this_term_alone(tmp_path):
    keys = {"DISTILL__LOSSES": ["PredictionLoss", "TargetAwareLoss"], "DISTILL__MATCHERS": ["AdaptiveMatcher"]}
    losses = []
    for weight in (1.0, 0.0):
        model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, **keys, DISTILL__TARGET_AWARE_LOSS__WEIGHT=weight)
        torch.manual_seed(0)
        losses.append(model(make_inputs()))
    assert set(losses[0]) - set(losses[1]) == {NAME, MASK_NAME}
    assert all(torch.equal(losses[0][name], value) for name, value in losses[1].items())
    assert "TargetAwareLoss" not in model.losses


def test_classes_are_found_by_name(tmp_path, named_sets):
    """An object of a class that the teacher does not know weighs nothing; others have the teacher's score."""
    keys = {"DETR__NUM_CLASSES": 4, "datasets": named_sets}
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, {"DETR__NUM_CLASSES": 8}, **ALONE, **keys)
    seen = []
    model.losses["TargetAwareLoss"].register_forward_hook(lambda module, args, losses: seen.append((args[1], losses)))
    inputs = make_inputs(counts=(1, 1), num_classes=4)
    for entry, label in zip(inputs, (0, 2), strict=True):  # "g", the teacher's class 6, and "x"
        entry["instances"].gt_classes[:] = label
    model(inputs)
    known, losses = seen[0]
    pairs = known.assignment.slice_layers(slice(-1, None))
    quality = query_quality(known.output, known.ground_truth, pairs, 1.0)
    scores = known.output.probabilities()[-1, 0, pairs.query[0, 0, 0]]
    assert known.ground_truth.labels.tolist() == [[6], [-1]]
    assert quality.tolist() == [[pytest.approx(scores[6].item())], [0]] and losses[NAME] > 0
    inputs[0]["instances"].gt_classes[:] = 2
    assert model(inputs)[NAME] == 0


def test_mixed_precision(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, LARGER, **ALONE)
    inputs = make_inputs()
    plain = model(inputs)[NAME]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(inputs)[NAME]
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(plain.item(), rel=0.05)


@pytest.mark.parametrize(("family", "keys"), [(DEFORMABLE, READ), (ADAMIXER, ALONE)])
def test_one_device_read_a_step(family, keys, tmp_path):
    """The teacher's matching is solved with the student's."""
    model, inputs = distiller(tmp_path, family, family, LARGER, **keys), make_inputs()
    with host_reads() as reads:
        sum(model(inputs).values()).backward()
    assert reads == ["cpu"]


@pytest.mark.parametrize(
    ("teacher", "student", "keys", "message"),
    [
        (ADAMIXER, ADAMIXER, READ, "AdaMixerDecoder has no cross-attention"),
        (CONDITIONAL, CONDITIONAL, {**ALONE, "DISTILL__TARGET_AWARE_LOSS__PROJECTION": "own"}, "PROJECTION is 'own'"),
    ],
)
def test_pairs_that_cannot_be_compared_are_named(teacher, student, keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        distiller(tmp_path, teacher, student, **keys)


def convolutional_cfg(save_teacher, **keys):
    """A RetinaNet that learns from the memory of a DETR."""
    cfg = dense_cfg("RetinaNet")
    node = cfg.MODEL.DISTILL
    for key, value in save_teacher().items():
        cfg.merge_from_list([key.replace("__", "."), value])
    cfg.MODEL.META_ARCHITECTURE, node.STUDENT_ARCHITECTURE = "DistillDetector", "RetinaNet"
    node.LOSSES, node.MATCHERS = ["TargetAwareLoss"], []
    node.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    return cfg


@pytest.mark.parametrize(
    ("keys", "message"),
    [({}, "FEATURES is 'memory'"), ({"TEACHER__NAME": "LabelEncoder"}, "LabelEncoder")],
)
def test_a_convolutional_student_has_no_memory(keys, message, save_teacher):
    with pytest.raises(ConfigError, match=message):
        build_model(convolutional_cfg(save_teacher, **keys))


def test_a_convolutional_students_pyramid_learns(save_teacher):
    model = build_model(convolutional_cfg(save_teacher, TARGET_AWARE_LOSS__FEATURES="neck")).train()
    with EventStorage(0):
        model(make_inputs())[NAME].backward()
    learned = {name for name, p in model.student.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("fpn_output" in name for name in learned) and not any("head" in name for name in learned)


def test_the_masks_own_loss_is_no_distillation(tmp_path):
    """It reaches no student: neither the balance nor the schedule touch it."""
    losses, keys = [], {"DISTILL__BALANCE__RANGE": [1e-6, 1e6]}
    for share in (0.0, 0.9):
        model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, **ALONE, **keys, DISTILL__BALANCE__TARGET_SHARE=share)
        torch.manual_seed(0)
        losses.append(model(make_inputs(), iteration=0))
    plain, steered = losses
    assert torch.equal(plain[MASK_NAME], steered[MASK_NAME]) and not torch.equal(plain[NAME], steered[NAME])
    detection = sum(value for name, value in steered.items() if name not in (NAME, MASK_NAME))
    assert (steered[NAME] / (steered[NAME] + detection)).item() == pytest.approx(0.9, rel=1e-4)
