"""Images without labels: no detection loss feels them, distillation does, under names and a weight of its own."""

from __future__ import annotations

from detr_distill.distill.students.base import StudentStep
from detr_distill.distill.unlabeled import as_teacher_sees
from detr_distill.errors import ConfigError, DataError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, without_batch_statistics
from helpers.convolutional import convolutional_distiller, dense_cfg, rcnn_cfg
from helpers.distill.families import ADAMIXER, CONDITIONAL, DETR, TWO_STAGE, distiller, family_cfg

SIZES, COUNTS = ((40, 56), (40, 56), (40, 56)), (2, 3, 2)
MATCHERS = ["AdaptiveMatcher"]
KINDS = {
    "groups": {"DETR__TRAINING_GROUPS": ["GroupQueries"]},
    "softmax": {"DETR__LOSS__CLASSIFICATION": "softmax"},
}


def without_labels(entry):
    return {key: value for key, value in entry.items() if key != "instances"}


def batch():
    """Three labelled images; the same with the last one unlabelled; and the first two alone."""
    labelled = make_inputs(SIZES, COUNTS)
    return labelled, [*labelled[:2], without_labels(labelled[2])], labelled[:2]


def detection_losses(model, inputs):
    torch.manual_seed(0)
    losses = model(inputs, iteration=0)
    return {name: value for name, value in losses.items() if not name.startswith("loss_distill")}


def check_detection_alone(model):
    _, mixed, first_two = batch()
    without_batch_statistics(model)
    found, expected = detection_losses(model, mixed), detection_losses(model, first_two)
    assert found.keys() == expected.keys() and len(found) > 1
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", [ADAMIXER, CONDITIONAL, DETR, TWO_STAGE])
def test_detection_losses_see_labelled_images_alone(name, tmp_path):
    check_detection_alone(
        distiller(tmp_path, CONDITIONAL, name, DISTILL__MATCHERS=MATCHERS, DISTILL__LOSSES=["PredictionLoss"])
    )


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_training_groups_and_softmax_heads_too(keys, tmp_path):
    keys = {**keys, "DISTILL__MATCHERS": MATCHERS, "DISTILL__LOSSES": ["PredictionLoss"]}
    check_detection_alone(distiller(tmp_path, CONDITIONAL, CONDITIONAL, **keys))


def test_a_forced_assignment_too(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, DISTILL__LOSSES=["PredictionLoss"])
    assert {"loss_class_fixed", "loss_box_fixed"} <= detection_losses(model, batch()[1]).keys()
    check_detection_alone(model)


@pytest.mark.parametrize("cfg", [dense_cfg("RetinaNet"), dense_cfg("FCOS"), rcnn_cfg()], ids=["retina", "fcos", "rcnn"])
def test_convolutional_students_too(cfg, tmp_path):
    model = convolutional_distiller(cfg, tmp_path)
    _, mixed, first_two = batch()
    model.student.loss_normalizer = 10.0
    found = detection_losses(model, mixed)
    model.student.loss_normalizer = 10.0
    expected = detection_losses(model, first_two)
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5), name
    losses = model(mixed, iteration=0)
    assert losses["loss_distill_feature_unlabeled"] > 0


def test_distillation_takes_an_image_as_it_would_with_labels(tmp_path):
    """Predictions need no objects: the losses of an image are the same, under another name."""
    model = distiller(
        tmp_path, CONDITIONAL, CONDITIONAL, DISTILL__MATCHERS=MATCHERS, DISTILL__LOSSES=["PredictionLoss"]
    )
    without_batch_statistics(model)
    labelled, mixed, first_two = batch()
    found, alone, others = model(mixed, iteration=0), model([labelled[2]], iteration=0), model(first_two, iteration=0)
    names = [name for name in alone if name.startswith("loss_distill")]
    assert len(names) == 6
    for name in names:
        assert torch.allclose(found[f"{name}_unlabeled"], alone[name], rtol=1e-4), name
        assert torch.allclose(found[name], others[name], rtol=1e-4), name
    model.unlabeled_weight = 0.5
    halved = model(mixed, iteration=0)
    assert torch.allclose(halved[f"{names[0]}_unlabeled"], 0.5 * found[f"{names[0]}_unlabeled"])
    assert torch.equal(halved[names[0]], found[names[0]])


def test_what_needs_objects_counts_on_labelled_images_alone(tmp_path):
    model = convolutional_distiller(dense_cfg("RetinaNet"), tmp_path, ("FeatureLoss", "FocalGlobalLoss"))
    names = {name for name in model(batch()[1], iteration=0) if name.endswith("_unlabeled")}
    assert names == {"loss_distill_feature_unlabeled"}


def test_every_weight_learns_from_a_mixed_batch(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL)
    sum(model(batch()[1], iteration=0).values()).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


def test_the_teacher_sees_the_plain_image():
    entry = make_inputs()[0]
    strong = {**entry, "image": entry["image"] * 0, "teacher_image": entry["image"]}
    step = as_teacher_sees(StudentStep([strong, entry]))
    assert torch.equal(step.batched_inputs[0]["image"], entry["image"])
    assert step.batched_inputs[1] == entry
    plain = StudentStep([entry])
    assert as_teacher_sees(plain) is plain


def test_order_and_presence_of_labels(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL)
    labelled, mixed, _ = batch()
    for wrong in (mixed[::-1], [without_labels(entry) for entry in labelled]):
        with pytest.raises(DataError, match="has no 'instances' at its front"):
            model(wrong, iteration=0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"MODEL__DISTILL__TEACHER__NAME": "LabelEncoder"}, "LabelEncoder is made from labels"),
        ({"MODEL__DISTILL__LOSSES": ["FocalGlobalLoss"]}, r"\['FocalGlobalLoss'\] none learns from images without"),
    ],
)
def test_what_cannot_learn_from_them_is_refused(keys, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        convolutional_distiller(dense_cfg("RetinaNet"), tmp_path, DATALOADER__UNLABELED_PER_BATCH=2, **keys)


def test_regions_are_sampled_by_labels(tmp_path):
    cfg = rcnn_cfg()
    model = convolutional_distiller(cfg, tmp_path)
    model.capture = frozenset({"predictions"})
    with pytest.raises(ConfigError, match="OverlapMatcher finds none"):
        model(batch()[1], iteration=0)
    keys = {"MODEL__DISTILL__MATCHERS": ["OverlapMatcher"], "MODEL__DISTILL__LOSSES": ["PredictionLoss"]}
    with pytest.raises(ConfigError, match=r"a GeneralizedRCNN samples its regions .* OverlapMatcher finds none"):
        convolutional_distiller(cfg, tmp_path, DATALOADER__UNLABELED_PER_BATCH=2, **keys)


def test_a_plain_detector_asks_for_labels():
    model = build_model(family_cfg(CONDITIONAL)).train()
    with pytest.raises(DataError, match="has no 'instances'"):
        model(batch()[1])
